"""What one mesh saved, any other restores, and no process reads more than its devices need."""

import json
import os
import socket
import subprocess
import sys

import jax
import pytest

from dit_jax.checkpoint import Checkpoints, newest, newest_path
from dit_jax.errors import InputError, TrainingError
from dit_jax.models import DiT
from dit_jax.moe.experts import MlpExperts
from dit_jax.moe.layer import MoE
from dit_jax.moe.routers import TopKRouter
from dit_jax.parallel.mesh import Parallel
from dit_jax.run import load
from tests.storage import states

SAVED_ON = {
    "fsdp": Parallel(data=1, fsdp=8),
    "fsdp_tensor": Parallel(data=1, fsdp=4, tensor=2),
    "replicas": Parallel(data=8),
}
RESTORED_ON = [
    (1, Parallel()),
    (2, Parallel(data=1, fsdp=2)),
    (4, Parallel(data=1, fsdp=2, tensor=2)),
    (8, Parallel(data=2, fsdp=2, tensor=2)),
    (8, Parallel(data=1, tensor=8)),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: states.save(folder / name, states.experiment(folder / name), parallel)
        for name, parallel in SAVED_ON.items()
    }


@pytest.mark.parametrize("written_by", SAVED_ON)
@pytest.mark.parametrize(("devices", "parallel"), RESTORED_ON)
def test_any_mesh_restores_what_any_mesh_saved(saved, written_by, devices, parallel):
    folder = saved[written_by]
    shapes = states.abstract(states.experiment(folder), parallel, jax.devices()[:devices])
    found = Checkpoints(folder).restore_newest(shapes)
    states.assert_is_the_state(found)
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(shapes)):
        assert leaf.sharding == wanted.sharding


def test_experts_move_between_meshes(tmp_path):
    ffn = MoE(TopKRouter(experts=8), MlpExperts())
    model = DiT(patch=4, hidden=32, depth=2, heads=8, num_classes=10, ffn=ffn)
    built = states.experiment(tmp_path, model=model.clone(learn_sigma=False))
    states.save(tmp_path, built, Parallel(data=1, fsdp=2, expert=4))
    for count, parallel in ((1, Parallel()), (8, Parallel(data=1, expert=8))):
        shapes = states.abstract(built, parallel, jax.devices()[:count])
        states.assert_is_the_state(Checkpoints(str(tmp_path)).restore_newest(shapes))


def two_processes(action, folder):
    """Runs an action in two processes with two devices each: how much of how much each moved."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    line = [sys.executable, "-m", "tests.storage.states", action, str(folder), str(port)]
    running = [
        subprocess.Popen([*line, str(i)], env=env, stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_no_process_reads_or_writes_the_whole(tmp_path):
    """Two hosts share a state: each moves its half, and the files need neither of them again."""
    for action in ("save", "restore"):
        for process in two_processes(action, tmp_path):
            share = process["moved"] / process["whole"]
            assert 0.4 < share < 0.6, (action, process)
    built = states.experiment(tmp_path, hidden=512)
    for count, parallel in ((1, Parallel()), (8, Parallel(data=1, fsdp=8))):
        shapes = states.abstract(built, parallel, jax.devices()[:count])
        states.assert_is_the_state(Checkpoints(str(tmp_path)).restore_newest(shapes))


def test_what_one_process_saved_two_restore(tmp_path):
    built = states.experiment(tmp_path, hidden=512)
    states.save(tmp_path, built, Parallel(data=1, fsdp=8))
    for process in two_processes("restore", tmp_path):
        assert 0.4 < process["moved"] / process["whole"] < 0.6


def test_a_sampler_reads_one_average_alone(tmp_path):
    built = states.experiment(tmp_path, hidden=512)
    states.save(tmp_path, built, Parallel(data=1, fsdp=8))
    before = states.file_bytes("read")
    params = load(str(tmp_path)).params
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert states.file_bytes("read") - before == pytest.approx(size, rel=0.05)


def test_a_checkpoint_without_an_item_says_so(saved, tmp_path, caplog):
    checkpoints, step = newest(saved["fsdp"])
    with pytest.raises(InputError, match="has no 'ema_0.5': it has ema_0.9, optimizer, params"):
        checkpoints.restore(step, {"ema_0.5": {}})
    built = states.experiment(tmp_path)
    weights = Checkpoints(str(tmp_path))
    weights.reserve({"params": {"kernel": jax.numpy.zeros(1)}}, {}, step=5)
    shapes = states.abstract(built, Parallel(), jax.devices()[:1])
    with pytest.raises(TrainingError, match="can be resumed from: .*--init-from"):
        weights.restore_newest(shapes)
    assert "has no 'params'" not in caplog.text and "has no 'optimizer'" in caplog.text
    assert weights.steps() == [5]


def test_the_newest_checkpoint_is_found_by_run_or_by_name(saved):
    run = saved["fsdp"]
    path = f"{run}/checkpoints/{states.STEP}"
    assert newest(run)[1] == newest(path)[1] == states.STEP
    assert newest_path(run) == newest_path(path) == path
    with pytest.raises(InputError, match="holds no checkpoint"):
        newest(f"{run}/checkpoints")
