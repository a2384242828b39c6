"""Two real processes are one run: same losses, same stops, one log, and neither outlives the other.

The drill of twenty kills is in test_fault_drill.py.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from dit_jax.checkpoint import Checkpoints
from dit_jax.errors import InputError
from dit_jax.parallel import hosts
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.run import load
from dit_jax.sampling import sample
from dit_jax.training.program import make_program
from dit_jax.training.state import with_shardings
from tests.parallel import pair
from tests.training import tiny

pytestmark = pytest.mark.processes

STEPS = 24
ARGS = (
    *("--training.steps", str(STEPS), "--run.save-every", "8", "--run.sample-every", "12"),
    *("--parallel.fsdp", "2", "--evaluation.samples", "16", "--evaluation.batch-size", "8"),
)
# The all-reduce of one process adds the parts of four devices in another order than that of two.
ROUNDING = {"rtol": 2e-6}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny.write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    pair.finish(config, run_dir, *ARGS, cluster=pair.by_slurm)
    return run_dir


@dataclasses.dataclass
class Story:
    """A run that was stopped by SIGTERM to its second process, and then lost it by kill -9."""

    folder: pathlib.Path
    statuses: list[int]
    stopped: int
    seconds: float
    survivor: int
    output: str


@pytest.fixture(scope="module")
def story(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("story") / "run"
    processes = pair.start(config, run_dir, *ARGS, "--run.save-every", "1000")
    try:
        tiny.wait_for_step(processes[0], run_dir, 3)
        processes[1].terminate()
        statuses = [process.wait(timeout=60) for process in processes]
    finally:
        pair.end(processes)
    stopped = load(str(run_dir)).step
    processes = pair.start(config, run_dir, *ARGS)
    try:
        tiny.wait_for_step(processes[0], run_dir, 19)
        os.killpg(processes[1].pid, signal.SIGKILL)
        killed = time.monotonic()
        survivor = processes[0].wait(timeout=60)
        seconds = time.monotonic() - killed
    finally:
        pair.end(processes)
    return Story(run_dir, statuses, stopped, seconds, survivor, tiny.output(run_dir))


def test_losses_are_those_of_one_process(config, undisturbed, tmp_path):
    tiny.finish(config, tmp_path / "run", *ARGS, env=pair.devices(4))
    ours, theirs = tiny.losses(undisturbed), tiny.losses(tmp_path / "run")
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), **ROUNDING)


def test_one_process_logs_and_all_write_their_shards(undisturbed):
    assert all(len(losses) == 1 for losses in tiny.losses(undisturbed).values())
    assert tiny.output(undisturbed).count(f"step {STEPS} of {STEPS} loss") == 1
    for name in ("experiment.json", "samples/step_00000012.png", "evaluation/metrics.json"):
        assert (undisturbed / name).is_file(), name
    assert len(list((undisturbed / "tensorboard").iterdir())) == 1
    for index in (0, 1):
        shards = undisturbed / "checkpoints" / str(STEPS) / "params" / f"ocdbt.process_{index}"
        assert sum(file.stat().st_size for file in shards.rglob("*") if file.is_file()) > 10_000


def test_what_the_first_refuses_ends_all(config, undisturbed):
    processes = pair.start(config, undisturbed, *ARGS, "--training.seed", "5")
    try:
        assert [process.wait(timeout=100) for process in processes] == [2, 2]
    finally:
        pair.end(processes)
    refusal = f"error: '{undisturbed}' holds a run of another configuration"
    assert tiny.output(undisturbed).count(refusal) == 2


def test_samples_are_those_of_one_process(undisturbed):
    ours = np.load(undisturbed / "evaluation" / "samples.npz")["arr_0"].astype(int)
    labels = [i % 10 for i in range(16)]
    theirs = sample(load(str(undisturbed)), labels, batch_size=8).astype(int)
    assert np.abs(ours - theirs).max() <= 1  # A rounding may cross the border of two bytes.


def test_sigterm_to_one_saves_the_same_step_on_all(story):
    assert story.statuses == [0, 0]
    assert 3 <= story.stopped < 16
    assert f"stopped by SIGTERM after saving step {story.stopped};" in story.output
    assert f"resumed from {story.folder}/checkpoints/{story.stopped}" in story.output


def test_the_other_ends_when_one_is_killed(story):
    assert story.survivor != 0
    assert story.seconds < 60
    lost = "another ended first, and its output says why"
    assert lost in story.output or "another task died" in story.output


def test_two_processes_go_on_as_if_nothing_had_happened(story, config, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(story.folder, run_dir)
    pair.finish(config, run_dir, *ARGS)
    assert "checkpoints/16" in tiny.output(run_dir)
    tiny.assert_same_run(run_dir, undisturbed)


def test_one_process_goes_on_from_what_two_have_saved(story, config, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(story.folder, run_dir)
    tiny.finish(config, run_dir, *ARGS, env=pair.devices(4))
    assert "checkpoints/16" in tiny.output(run_dir)
    ours, theirs = tiny.losses(run_dir), tiny.losses(undisturbed)
    assert len(ours[STEPS]) == 1
    np.testing.assert_allclose(
        [losses[-1] for losses in ours.values()],
        [losses[-1] for losses in theirs.values()],
        **ROUNDING,
    )


@dataclasses.dataclass
class Told:
    """What two processes of four devices found: see hosts_program.py."""

    folder: pathlib.Path
    found: list[dict]
    outputs: list[str]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    port, processes = pair.free_port(), []
    files = [folder / f"{index}.out" for index in (0, 1)]
    for index, file in enumerate(files):
        with open(file, "w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.parallel.hosts_program", str(folder / "run")],
                cwd=tiny.ROOT,
                env=os.environ | pair.devices(4) | pair.by_hand(port, index),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        processes.append(process)
    try:
        statuses = [process.wait(timeout=300) for process in processes]
    finally:
        pair.end(processes)
    outputs = [file.read_text() for file in files]
    assert statuses == [0, 0], outputs
    found = [json.loads(output.rpartition("found ")[2].splitlines()[0]) for output in outputs]
    return Told(folder / "run", found, outputs)


def test_what_one_knows_all_know(told):
    for index, found in enumerate(told.found):
        assert found["main"] == (index == 0)
        assert found["value"] == {"from": 0}
        assert found["refusal"] == "the first process refuses"
        assert not found["set nowhere"]
        assert found["set on the second"]
        assert found["placed"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("mesh", "rows"),
    [
        ("in order", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("shared", [[0, 1, 2, 3, 4, 5, 6, 7]] * 2),
        ("across", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ],
)
def test_each_process_reads_the_rows_of_its_devices(told, mesh, rows):
    assert [found[mesh] for found in told.found] == [{"rows": r, "right": True} for r in rows]


def test_a_checkpoint_that_one_cannot_read_is_none_for_all(told):
    assert [found["restored"] for found in told.found] == [0, 0]
    assert "checkpoints/1 cannot be read: another process could not" in told.outputs[0]
    assert "checkpoints/1 cannot be read: no such luck" in told.outputs[1]
    assert [path.name for path in (told.folder / "damaged").iterdir()] == ["1"]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_what_eight_devices_saved_fewer_restore(told, count):
    experiment = tiny.experiment(told.folder)
    layout = Layout(Parallel(data=1, fsdp=count).mesh(jax.devices()[:count]))
    program = make_program(experiment, layout)
    restored = Checkpoints(str(told.folder)).restore_newest(
        with_shardings(program.abstract, program.shardings)
    )
    assert restored.params["patch_embed"]["kernel"].sharding.mesh.size == count
    fresh = jax.jit(experiment.fresh_state)()
    jax.tree.map(np.testing.assert_array_equal, restored, fresh)


@pytest.fixture
def asked(monkeypatch):
    """How JAX was asked to start, if it was, on a machine whose environment says nothing."""
    for name in os.environ:
        if name.startswith(("JAX_COORD", "JAX_NUM", "JAX_PROC", "SLURM", "OMPI", "KUBE", "TPU_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: calls.append(how))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    return calls


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS is not set"),
        ({"JAX_COORDINATOR_ADDRESS": "host:1234"}, "JAX_NUM_PROCESSES is not set"),
        (pair.by_hand(1234, 2), "JAX_PROCESS_ID is '2' and JAX_NUM_PROCESSES '2'"),
        (pair.by_hand(1234, -1), "JAX_PROCESS_ID is '-1'"),
        (pair.by_hand(1234, 0) | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES 'two'"),
        (pair.by_hand(1234, 0) | {"JAX_COORDINATOR_ADDRESS": "host"}, "give it as host:port"),
    ],
)
def test_settings_that_do_not_fit_are_refused(asked, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        hosts.start()
    assert not asked


GKE = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


@pytest.mark.parametrize(
    ("environment", "together"),
    [
        ({}, False),
        (pair.by_hand(1234, 0) | {"JAX_NUM_PROCESSES": "1"}, False),
        (pair.by_slurm(1234, 1), True),
        (pair.by_slurm(1234, 0) | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        (GKE, True),
        (GKE | {"TPU_WORKER_HOSTNAMES": "job-0-0.job"}, False),
        (GKE | {"TPU_WORKER_HOSTNAMES": "job-0-0.job,job-0-1.job"}, True),
        (GKE | {"TPU_WORKER_HOSTNAMES": "job-0-0.job", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ],
)
def test_only_a_cluster_is_asked(asked, monkeypatch, environment, together):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    hosts.start()
    assert len(asked) == together


@pytest.mark.parametrize(
    ("attributes", "together"),
    [
        ({"worker-network-endpoints": "a:0:10.0.0.2,b:1:10.0.0.3"}, True),
        ({"worker-network-endpoints": "a:0:10.0.0.2"}, False),
        ({"worker-network-endpoints": "10.0.0.2", "tpu-env": "MEGASCALE_NUM_SLICES: '2'"}, True),
        ({}, False),
    ],
)
def test_the_metadata_server_says_whether_a_tpu_has_more_machines(
    asked, monkeypatch, attributes, together
):
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rpartition("/")[2])
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    try:
        hosts.start()
    finally:
        server.shutdown()
        server.server_close()
    assert len(asked) == together


@pytest.mark.parametrize("index", [0, 1])
def test_processes_that_do_not_come_are_missed_in_one_line(index):
    code = "from dit_jax.parallel import hosts; hosts.START_SECONDS = 2; hosts.start()"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tiny.ROOT,
        env=os.environ | pair.by_hand(pair.free_port(), index),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: not all processes of this run came within 2 seconds")
    assert len(ended.stderr.splitlines()) == 1
