"""Whatever stops a run, the same command carries it on as if nothing had happened."""

import os
import pathlib
import random
import resource
import shutil
import signal
import time

import pytest

from dit_jax.run import load
from tests.training import tiny

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny.write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory):
    """The run that nothing disturbs."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    tiny.finish(config, run_dir)
    return run_dir


def kill_group(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_kill_at_a_random_moment(config, reference, tmp_path):
    run_dir = tmp_path / "run"
    process = tiny.start(config, run_dir)
    tiny.wait_for_step(process, run_dir, random.randint(25, 90))
    time.sleep(random.random() * 0.05)
    kill_group(process)
    assert max(tiny.losses(run_dir)) < 120
    tiny.finish(config, run_dir)
    assert "resumed from" in tiny.output(run_dir)
    tiny.assert_same_run(run_dir, reference)


def test_sigterm_saves_and_exits_with_status_0(config, reference, tmp_path):
    run_dir = tmp_path / "run"
    process = tiny.start(config, run_dir, "--run.save-every", "1000")
    tiny.wait_for_step(process, run_dir, 33)
    process.terminate()
    assert process.wait(timeout=60) == 0
    stopped = load(str(run_dir)).step
    assert 33 <= stopped < 120
    tiny.finish(config, run_dir, "--run.save-every", "1000")
    assert f"checkpoints/{stopped}" in tiny.output(run_dir)
    tiny.assert_same_run(run_dir, reference)


def test_a_killed_data_worker_stops_the_run_and_costs_nothing(config, reference, tmp_path):
    run_dir = tmp_path / "run"
    process = tiny.start(config, run_dir, "--loader.workers", "2")
    tiny.wait_for_step(process, run_dir, 25)
    os.kill(data_workers(process.pid)[0], signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    assert "error: a data reader process died" in tiny.output(run_dir)
    assert not data_workers(process.pid)
    tiny.finish(config, run_dir)  # With other workers: they do not change the batches.
    tiny.assert_same_run(run_dir, reference)


def test_a_truncated_checkpoint_is_passed_over_and_kept(config, reference, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(reference, run_dir)
    newest = run_dir / "checkpoints" / "120"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    tiny.finish(config, run_dir)
    assert "checkpoints/120 cannot be read" in tiny.output(run_dir)
    assert "checkpoints/110" in tiny.output(run_dir)
    assert (run_dir / "damaged" / "120" / largest.relative_to(newest)).exists()
    tiny.assert_same_run(run_dir, reference)


def test_a_full_disk_stops_the_run_and_leaves_what_was_saved(config, reference, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(reference, run_dir)
    # A limit on file sizes makes writes fail as a full disk does, and needs no disk of its own.
    limit = 60_000
    process = tiny.start(
        config,
        run_dir,
        *("--training.steps", "130", "--run.allow-changes"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert process.wait(timeout=120) == 1
    assert "error: a checkpoint could not be saved" in tiny.output(run_dir)
    assert "checkpoints/120 is safe" in tiny.output(run_dir)
    assert load(str(run_dir)).step == 120


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
def test_many_kills(config, reference, tmp_path, attempt):
    run_dir = tmp_path / "run"
    for _ in range(4):
        process = tiny.start(config, run_dir, "--loader.workers", str(attempt % 2))
        time.sleep(random.uniform(4, 12))
        kill_group(process)
    tiny.finish(config, run_dir)
    tiny.assert_same_run(run_dir, reference)


def data_workers(parent: int) -> list[int]:
    """Reader processes of a run: children that `multiprocessing` spawned, its tracker aside."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if int(status[1]) == parent and status[0] != "Z" and "spawn_main" in command:
            found.append(int(folder.name))
    return found
