"""Training states whose every value is known, on any mesh; also a program for one process of many.

python -m tests.storage.states save|restore RUN PORT PROCESS
"""

import json
import sys

import jax
import numpy as np
import tensorstore

from dit_jax.checkpoint import Checkpoints, state_items
from dit_jax.experiment import RunFolder
from dit_jax.interop.engine import by_path
from dit_jax.models import DiT
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.training.program import make_program
from dit_jax.training.state import TrainState, with_shardings
from tests.evaluation.tiny_run import tiny_experiment

STEP = 7


def experiment(folder, hidden=32, **changes):
    """A tiny experiment whose arrays divide over eight devices in any way."""
    model = DiT(patch=4, hidden=hidden, depth=2, heads=8, num_classes=10, learn_sigma=False)
    return tiny_experiment(**{"model": model, "run": RunFolder(str(folder))} | changes)


def abstract(built, parallel, devices=None):
    """Shapes and places of the experiment's state on a mesh."""
    program = make_program(built, Layout(parallel.mesh(devices)))
    return with_shardings(program.abstract, program.shardings)


def values(number, leaf):
    """The values of the `number`-th array of a state: no two are alike, and some are odd."""
    rng = np.random.default_rng(number)
    if leaf.dtype == np.int32:
        return np.full(leaf.shape, STEP, np.int32)
    made = rng.standard_normal(leaf.shape).astype(leaf.dtype)
    made.flat[:2] = -0.0, np.nan
    if number % 3 == 0:
        made[...] = 0  # As moments are before the first step.
    return made


def state(shapes):
    """The state with those values, where `shapes` wants it."""
    leaves, structure = jax.tree.flatten(shapes)

    def make(number, leaf):
        whole = values(number, leaf)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda at: whole[at])

    return jax.tree.unflatten(structure, [make(*each) for each in enumerate(leaves)])


def save(folder, built, parallel, devices=None):
    """Writes the state as training on that mesh would."""
    checkpoints = Checkpoints(str(folder))
    checkpoints.save(state(abstract(built, parallel, devices)), built)
    checkpoints.close()
    return str(folder)


def assert_is_the_state(found: TrainState):
    """Every part that this process holds has the values' bits."""
    for number, leaf in enumerate(jax.tree.leaves(found)):
        expected = values(number, leaf)
        for shard in leaf.addressable_shards:
            bits = np.ascontiguousarray(expected[shard.index]).tobytes()
            assert np.asarray(shard.data).tobytes() == bits


def stored_bits(folder, step=STEP):
    """All arrays of a checkpoint as they are on disk, by item and path."""
    checkpoints = Checkpoints(str(folder))
    shapes = state_items(abstract(checkpoints.experiment(step)[0], Parallel(), jax.devices()[:1]))
    return {
        (item, path): checkpoints.array(step, item, path).read().result().tobytes()
        for item in checkpoints.items(step)
        for path in by_path(shapes[item])
    }


def file_bytes(kind):
    """Bytes that this process has `read` or `written` in files through TensorStore."""
    (metric,) = tensorstore.experimental_collect_matching_metrics(
        f"/tensorstore/kvstore/file/bytes_{kind}"
    )
    return metric["values"][0]["value"]


def main(action, folder, port, process):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
    built = experiment(folder, hidden=512)
    shapes = abstract(built, Parallel(data=1, fsdp=4))
    if action == "save":
        save(folder, built, Parallel(data=1, fsdp=4))
        moved = file_bytes("written")
    else:
        assert_is_the_state(Checkpoints(folder).restore_newest(shapes))
        moved = file_bytes("read")
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    print(json.dumps({"moved": moved, "whole": whole}))


if __name__ == "__main__":
    main(*sys.argv[1:])
