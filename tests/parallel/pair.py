"""Two real processes on one machine, each with virtual devices of its own."""

import os
import signal
import socket
import subprocess
import sys

from tests.training import tiny


def devices(count: int) -> dict[str, str]:
    """The environment of a process with so many devices."""
    flags = {
        "xla_force_host_platform_device_count": count,
        "xla_cpu_enable_concurrency_optimized_scheduler": "false",  # As in tests/conftest.py.
    }
    return {"XLA_FLAGS": " ".join(f"--{name}={value}" for name, value in flags.items())}


def by_hand(port: int, index: int) -> dict[str, str]:
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }


def by_slurm(port: int, index: int) -> dict[str, str]:
    """What `srun --ntasks 2` sets."""
    return {
        "SLURM_JOB_ID": "4242",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(config, run_dir, *args, cluster=by_hand) -> list[subprocess.Popen]:
    """Starts `train.py` twice with the same command, on two devices each; both print to a file."""
    port = free_port()
    environments = [devices(2) | cluster(port, index) for index in (0, 1)]
    return [tiny.start(config, run_dir, *args, env=env) for env in environments]


def end(processes: list[subprocess.Popen]) -> None:
    """Kills what still runs, reader processes included."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finish(config, run_dir, *args, **kwargs) -> None:
    """Runs to the end."""
    processes = start(config, run_dir, *args, **kwargs)
    try:
        assert [p.wait(timeout=400) for p in processes] == [0, 0], tiny.output(run_dir)
    finally:
        end(processes)


def run_module(module: str, *args: str) -> list[str]:
    """Runs `python -m MODULE ARGS` as two processes of two devices each; returns their output."""
    port, processes = free_port(), []
    for index in (0, 1):
        process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            cwd=tiny.ROOT,
            env=os.environ | devices(2) | by_hand(port, index),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
    try:
        printed = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], printed
        return printed
    finally:
        end(processes)
