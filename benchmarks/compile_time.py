"""Does compile time grow with depth?

Seconds to trace and lower, and to compile, one training step of a DiT of width 384 (batch 8, one
device) with 4 and with 28 layers, in turns, every time anew: no persistent cache, and the caches in
memory cleared. `equations` counts the traced program, nested programs included.

    python benchmarks/compile_time.py [--depths 4 28] [--repeats 5] [--out benchmarks/results/]
"""

import json
import statistics
import time
from typing import Any

import jax
import report
from jax.extend import core

from dit_jax.diffusion import Gaussian
from dit_jax.latents import VAE, Cached
from dit_jax.models.inputs import example_inputs
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.presets import create_model
from dit_jax.training.optimizer import AdamW
from dit_jax.training.state import new_state, state_shardings
from dit_jax.training.step import make_step

BATCH, SHAPE = 8, (32, 32, 4)


def main() -> None:
    """Compiles in turns and saves the report."""
    parser = report.parser(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 28])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    compile_step(2)  # The first compilation of a process also loads the compiler.
    times: dict[int, list[tuple[float, float]]] = {depth: [] for depth in options.depths}
    for _ in range(options.repeats):
        for depth in options.depths:
            times[depth].append(compile_step(depth))
    rows = [summary(depth, values) for depth, values in times.items()]
    shallow, deep = times[options.depths[0]], times[options.depths[-1]]
    ratio = statistics.median(sum(b) / sum(a) for a, b in zip(shallow, deep))
    results = {
        "device": jax.devices()[0].device_kind,
        "repeats": options.repeats,
        "depths": rows,
        "deepest_over_shallowest": round(ratio, 3),
    }
    report.save("compile_time", __doc__, results, options.out)


def compile_step(depth: int) -> tuple[float, float]:
    """Seconds to trace and lower, and seconds to compile."""
    jax.clear_caches()
    step, arguments = training_step(depth)
    begin = time.perf_counter()
    lowered = step.lower(*arguments)
    middle = time.perf_counter()
    lowered.compile()
    return middle - begin, time.perf_counter() - middle


def training_step(depth: int) -> tuple[Any, tuple[Any, Any, Any]]:
    """The jitted step as the training loop has it, and its abstract arguments."""
    model = create_model("DiT-S/2", depth=depth)
    optimizer = AdamW().build(steps=1_000_000)
    layout = Layout(Parallel().mesh(jax.devices()[:1]))

    def fresh():
        return new_state(model.init(*example_inputs(SHAPE))["params"], optimizer, (0.9999,))

    state = jax.eval_shape(fresh)
    shardings = state_shardings(layout, optimizer, state)
    step = make_step(
        model, Gaussian(), Cached(VAE()), optimizer, accumulation=1, seed=0, layout=layout
    )
    height, width, channels = SHAPE
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, height, width, 2 * channels), "float32"),
        "label": jax.ShapeDtypeStruct((BATCH,), "int32"),
    }
    jitted = jax.jit(
        step,
        in_shardings=(shardings, layout.batch, layout.replicated),
        out_shardings=(shardings, layout.replicated),
        donate_argnums=0,
    )
    return jitted, (state, batch, {})


def summary(depth: int, values: list[tuple[float, float]]) -> dict:
    """One depth's row of the report."""
    step, arguments = training_step(depth)
    totals = [sum(value) for value in values]
    result = {
        "depth": depth,
        "seconds": round(statistics.median(totals), 3),
        "lowest": round(min(totals), 3),
        "highest": round(max(totals), 3),
        "lower_seconds": round(statistics.median(lower for lower, _ in values), 3),
        "compile_seconds": round(statistics.median(compiled for _, compiled in values), 3),
        "equations": count_equations(jax.make_jaxpr(step)(*arguments).jaxpr),
    }
    print(json.dumps(result), flush=True)
    return result


def count_equations(jaxpr: core.Jaxpr) -> int:
    """Equations of a program and of the programs within it."""
    return len(jaxpr.eqns) + sum(map(count_equations, core.subjaxprs(jaxpr)))


if __name__ == "__main__":
    main()
