"""Do the attention mechanisms compile for every TPU, forward and backward, and in what memory?

Asks the TPU compiler itself, ahead of time: no TPU is needed, but its compiler is (`pip install
libtpu`). Whole operators in bfloat16: routing, layout and kernels, one head of one sample.

    python benchmarks/attention_tpu.py [--chips v5e v6e] [--mechanisms llsa] [--cases 65536:64 ...]

Cases are tokens:width of a head, on square grids.
"""

import json
import math
import os
import time

import report

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
CASES = ("256:72", "4096:128", "16384:64", "65536:64")
# What the compiler looks for on a TPU's own machine.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}


def main() -> None:
    """Compiles all cases and saves the table."""
    parser = report.parser(__doc__)
    parser.add_argument("--chips", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--mechanisms", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--cases", nargs="+", metavar="TOKENS:WIDTH", default=CASES)
    options = parser.parse_args()
    os.environ |= ENVIRONMENT
    from attention import mechanisms

    results = []
    for case in options.cases:
        tokens, width = (int(number) for number in case.split(":"))
        side = math.isqrt(tokens)
        for name, mixer in mechanisms(side).items():
            if options.mechanisms and name.split()[0] not in options.mechanisms:
                continue
            for chip in options.chips:
                for gradient in (False, True):
                    found = compiled(mixer, side, width, chip, gradient)
                    row = {"mechanism": name, "case": case, "chip": chip, "gradient": gradient}
                    results.append(row | found)
                    print(json.dumps(results[-1]), flush=True)
    report.save("attention_tpu", __doc__, results, options.out)


def compiled(mixer, side: int, width: int, chip: str, gradient: bool) -> dict:
    """Seconds of compilation, bytes of temporaries, and the kernels in the program."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    def total(q, k, v):
        return mixer(q, k, v, (side, side)).astype(jnp.float32).sum()

    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices
    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("device",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((1, side * side, 1, width), jnp.bfloat16, sharding=sharding)
    function = jax.jit(jax.grad(total, (0, 1, 2)) if gradient else total)
    begin = time.perf_counter()
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            lowered = function.trace(x, x, x).lower(lowering_platforms=("tpu",))
            memory = lowered.compile().memory_analysis()
    except Exception as error:  # The compiler's reason is the result.
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "temporary_mib": round(memory.temp_size_in_bytes / 2**20, 1),
        "kernels": lowered.as_text().count("tpu_custom_call"),
    }


if __name__ == "__main__":
    main()
