"""How long does a save hold up training, and how near do save and restore come to the disk?

The parameters of a DiT in float32 (1.5 billion by default) are saved as training saves them, while
a step that does not touch them goes on, and restored, in turns with `dd` on the same folder:
writing with fsync, reading with nothing left in the page cache. On a CPU the state is in the host's
memory already: an accelerator's save waits for the copy from it, which this does not measure.

    python benchmarks/checkpoint.py [--depth 28] [--hidden 1728] [--turns 3] [--scratch DIR]
"""

import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import report

from dit_jax.checkpoint import Checkpoints
from dit_jax.data import Digits
from dit_jax.diffusion import Euler, Flow, Sampling
from dit_jax.experiment import Experiment, RunFolder
from dit_jax.models import DiT
from dit_jax.models.inputs import example_inputs
from dit_jax.training.state import TrainState

BLOCK = 16 << 20


def main() -> None:
    """Takes turns and saves the report."""
    parser = report.parser(__doc__)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=1728)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--scratch", metavar="DIR", help="where the files go")
    options = parser.parse_args()
    model = DiT(depth=options.depth, hidden=options.hidden, heads=16, num_classes=10)
    experiment = Experiment(model, Flow(), Digits(), RunFolder("unset"), Sampling(Euler()))
    shapes = jax.eval_shape(model.init, *example_inputs(experiment.shape))["params"]
    turns = []
    for number in range(options.turns):
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            turns.append(turn(pathlib.Path(scratch), number, experiment, shapes))
            print(json.dumps(turns[-1]), flush=True)
    result = summary(turns, shapes)
    print(json.dumps(result, indent=2))
    report.save("checkpoint", __doc__, result, options.out)


def turn(folder: pathlib.Path, number: int, experiment: Experiment, shapes) -> dict[str, float]:
    """Seconds of a save, a restore, and of `dd` writing and reading as many bytes."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    seconds = dd(folder / "dd", size)
    params = jax.block_until_ready(fill(shapes, number))
    before = checksum(params)
    seconds |= save(folder / "run", params, experiment)
    del params
    forget(folder)
    begin = time.perf_counter()
    params = restore(folder / "run", shapes)
    seconds["restore"] = time.perf_counter() - begin
    if checksum(params) != before:
        raise SystemExit("what was restored is not what was saved")
    shutil.rmtree(folder / "run")
    return seconds


def save(folder: pathlib.Path, params, experiment: Experiment) -> dict[str, float]:
    """Seconds until `save` returns, until all is on disk, and of a step before and meanwhile."""
    state = TrainState(jnp.int32(1), params, {"count": jnp.int32(1)}, {})
    checkpoints = Checkpoints(str(folder))
    step = jax.jit(lambda x: x @ x)
    x = jax.block_until_ready(step(jnp.ones((1024, 1024))))

    def timed_step() -> float:
        start = time.perf_counter()
        jax.block_until_ready(step(x))
        return time.perf_counter() - start

    alone = statistics.median(timed_step() for _ in range(20))
    begin = time.perf_counter()
    checkpoints.save(state, experiment)
    stall = time.perf_counter() - begin
    meanwhile = statistics.median(timed_step() for _ in range(20))
    checkpoints.close()
    saved = time.perf_counter() - begin
    return {"stall": stall, "save": saved, "step_alone": alone, "step_meanwhile": meanwhile}


def restore(folder: pathlib.Path, shapes):
    """Reads the parameters onto one device."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes
    )
    return jax.block_until_ready(Checkpoints(str(folder)).restore(1, {"params": wanted})["params"])


def dd(file: pathlib.Path, size: int) -> dict[str, float]:
    """Seconds to write so many bytes, with fsync, and to read them."""
    blocks = f"count={size // BLOCK}"
    seconds = {}
    for name, line in {
        "dd_write": ["if=/dev/zero", f"of={file}", "conv=fsync", blocks],
        "dd_read": [f"if={file}", "of=/dev/null"],
    }.items():
        forget(file.parent)
        begin = time.perf_counter()
        subprocess.run(["dd", f"bs={BLOCK}", *line], check=True, stderr=subprocess.DEVNULL)
        seconds[name] = (time.perf_counter() - begin) * size / (size // BLOCK * BLOCK)
    file.unlink()
    return seconds


def forget(folder: pathlib.Path) -> None:
    """Drops what the page cache holds of all files below a folder."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill(shapes, seed: int):
    """Random parameters; the layers of a stack differ by a constant, which is quicker to make."""

    def leaf(number: int, shape: tuple[int, ...]):
        key = jax.random.fold_in(jax.random.key(seed), number)
        layers = jnp.arange(shape[0], dtype=jnp.float32).reshape(-1, *[1] * (len(shape) - 1))
        return 1e-3 * layers + jax.random.uniform(key, shape[1:])[None]

    leaves, structure = jax.tree.flatten(shapes)
    make = jax.jit(leaf, static_argnums=1)
    return jax.tree.unflatten(structure, [make(i, x.shape) for i, x in enumerate(leaves)])


def checksum(params) -> list[int]:
    """A sum of the bits of each array."""
    bits = jax.jit(lambda x: jax.lax.bitcast_convert_type(x, jnp.uint32).sum(dtype=jnp.uint32))
    return [int(bits(leaf)) for leaf in jax.tree.leaves(params)]


def summary(turns: list[dict[str, float]], shapes) -> dict:
    """Median, lowest and highest of the turns."""
    leaves = jax.tree.leaves(shapes)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    def spread(values: list[float]) -> dict[str, float]:
        values = [float(f"{value:.3g}") for value in values]
        return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}

    speeds = ("save", "restore", "dd_write", "dd_read")
    return {
        "parameters": sum(leaf.size for leaf in leaves),
        "gigabytes": round(size / 1e9, 3),
        "seconds": {name: spread([t[name] for t in turns]) for name in turns[0]},
        "gigabytes_per_second": {
            name: spread([size / 1e9 / t[name] for t in turns]) for name in speeds
        },
        "save_over_dd": spread([t["dd_write"] / t["save"] for t in turns]),
        "restore_over_dd": spread([t["dd_read"] / t["restore"] for t in turns]),
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
