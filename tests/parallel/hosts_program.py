"""What tests/parallel/test_hosts.py runs as two processes: prints what each has found, as JSON."""

import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from dit_jax.checkpoint import Checkpoints
from dit_jax.data import batches, to_device
from dit_jax.data.in_memory import InMemoryRecords
from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.parallel import hosts
from dit_jax.parallel.mesh import AXES
from dit_jax.parallel.sharding import Layout, place
from dit_jax.training.program import make_program
from dit_jax.training.state import with_shardings
from tests.training import tiny


def refuse():
    raise InputError("the first process refuses")


def refusal() -> str:
    try:
        hosts.on_main(refuse)
    except InputError as error:
        return str(error)


def rows_of(order: list[int], shape: tuple[int, ...]) -> dict:
    """Reads a batch of 8 for a mesh, and says which rows came where."""
    layout = Layout(Mesh(np.array(jax.devices())[order].reshape(shape), AXES))
    records = InMemoryRecords(np.arange(64, dtype=np.uint8).reshape(64, 1, 1, 1), np.zeros(64, int))
    rows = layout.rows(8)
    usual = {"batch_size": 8, "start": 0, "steps": 1, "seed": 0, "num_classes": 1}
    (whole,) = batches(records, **usual)
    (batch,) = to_device(batches(records, **usual, rows=rows), layout.batch, rows, 8)
    right = all(
        np.array_equal(shard.data, whole["image"][shard.index])
        for shard in batch["image"].addressable_shards
    )
    return {"rows": rows.tolist(), "right": right}


def restored_step(experiment: Experiment) -> int:
    """Saves steps 0 and 1, and restores where the second process cannot read step 1."""
    program = make_program(experiment, Layout(experiment.parallel.mesh()))
    state = jax.jit(experiment.fresh_state, out_shardings=program.shardings)()
    checkpoints = Checkpoints(experiment.run.dir)
    for step in (0, 1):
        state = state.replace(step=place(np.int32(step), program.layout.replicated))
        checkpoints.save(state, experiment)
    checkpoints.wait()
    restore = checkpoints.restore

    def failing(step, abstract):
        if step == 1 and not hosts.is_main():
            raise OSError("no such luck")
        return restore(step, abstract)

    checkpoints.restore = failing
    target = with_shardings(program.abstract, program.shardings)
    return int(checkpoints.restore_newest(target).step)


if __name__ == "__main__":
    hosts.start()
    index = jax.process_index()
    replicated = Layout(Mesh(np.array(jax.devices()).reshape(8, 1, 1, 1, 1), AXES)).replicated
    found = {
        "main": hosts.is_main(),
        "value": hosts.on_main(lambda: {"from": jax.process_index()}),
        "refusal": refusal(),
        "set nowhere": bool(hosts.anywhere(False)),
        "set on the second": bool(hosts.anywhere(index == 1)),
        "placed": np.asarray(place(np.arange(3), replicated)).tolist(),
        "in order": rows_of(list(range(8)), (8, 1, 1, 1, 1)),
        "shared": rows_of([0, 4, 1, 5, 2, 6, 3, 7], (4, 1, 1, 1, 2)),
        "across": rows_of([0, 4, 1, 5, 2, 6, 3, 7], (2, 4, 1, 1, 1)),
        "restored": restored_step(tiny.experiment(sys.argv[1], parallel__fsdp=4)),
    }
    print(f"\nfound {json.dumps(found)}")
