"""Twenty kills of one process of two, at random moments, and the run is what it would have been."""

import os
import random
import signal
import time

import pytest

from dit_jax.checkpoint import FOLDER, complete_steps
from tests.parallel import pair
from tests.training import tiny

KILLS, STEPS, SAVE_EVERY = 20, 200, 4
ARGS = ("--training.steps", str(STEPS), "--run.save-every", str(SAVE_EVERY), "--parallel.fsdp", "2")


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    config = tiny.write_config(tmp_path)
    run_dir, undisturbed = tmp_path / "drill" / "run", tmp_path / "undisturbed" / "run"
    pair.finish(config, undisturbed, *ARGS)
    for kill in range(KILLS):
        before, saved = logged(run_dir), newest(run_dir)
        processes = pair.start(config, run_dir, *ARGS)
        try:
            moment = wait_for_a_moment(processes, run_dir)
            victim = random.randrange(2)
            os.killpg(processes[victim].pid, signal.SIGKILL)
            killed = time.monotonic()
            status = processes[1 - victim].wait(timeout=60)
            seconds = time.monotonic() - killed
        finally:
            pair.end(processes)
        steps = logged(run_dir)[len(before) :]
        print(
            f"kill {kill + 1}: process {victim} {moment}; the other ended with status {status} "
            f"after {seconds:.1f} s; resumed from {saved}, logged {steps[-1:]}, "
            f"saved {newest(run_dir)}"
        )
        assert status != 0
        assert steps == [saved + 1 + i for i in range(len(steps))]
        # The save at hand when the process died may be lost, the one before it is not.
        assert not steps or newest(run_dir) >= steps[-1] - 2 * SAVE_EVERY
    pair.finish(config, run_dir, *ARGS)
    tiny.assert_same_run(run_dir, undisturbed)


def logged(run_dir) -> list[int]:
    """Every step that was logged, in the order of the log."""
    path = run_dir / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split(",")[0].rpartition(" ")[2]) for line in lines if line.endswith("}")]


def newest(run_dir) -> int:
    """The newest complete checkpoint; 0 where there is none."""
    return max(complete_steps(run_dir / FOLDER), default=0)


def wait_for_a_moment(processes, run_dir) -> str:
    """Waits into the start of the processes, one time in four, or into one of their first steps.

    The start is what follows when they have met: until then a process may as well be late.
    """
    starting, more = random.random() < 0.25, random.randint(1, 9)
    steps, meetings = len(logged(run_dir)), tiny.output(run_dir).count("[Gloo]")
    deadline = time.monotonic() + 300
    while (
        tiny.output(run_dir).count("[Gloo]") == meetings
        if starting
        else len(logged(run_dir)) < steps + more
    ):
        assert all(process.poll() is None for process in processes), tiny.output(run_dir)
        assert time.monotonic() < deadline, tiny.output(run_dir)
        time.sleep(0.01)
    seconds = random.uniform(0, 10 if starting else 1)
    time.sleep(seconds)
    after = "they met" if starting else f"step {logged(run_dir)[-1]}"
    return f"{seconds:.2f} s after {after}"
