"""A run so small that tests can afford many, in this process or in real ones of their own."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np

from dit_jax.run import load

ROOT = pathlib.Path(__file__).parents[2]

CONFIG = """
from dit_jax.data import Digits
from dit_jax.diffusion import ClassifierFree, Euler, Flow, Sampling
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.models import DiT
from dit_jax.training.optimizer import AdamW, Cosine

experiment = Experiment(
    model=DiT(patch=2, hidden=32, depth=2, heads=2, num_classes=10, learn_sigma=False),
    process=Flow(),
    data=Digits(flip=True),
    sampling=Sampling(Euler(steps=2), ClassifierFree()),
    optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=10)),
    training=Training(steps=120, batch_size=32, ema=(0.9, 0.99)),
    run=RunFolder("unset", log_every=1, save_every=10, keep=3),
)
"""


def write_config(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "tiny.py"
    path.write_text(CONFIG)
    return path


def experiment(folder: pathlib.Path, **options):
    """The tiny experiment in `folder`, with options such as training__steps=5."""
    import dataclasses

    namespace = {}
    exec(CONFIG, namespace)
    built = namespace["experiment"]
    changes = {"run__dir": str(folder), **options}
    for name, value in changes.items():
        parent, _, field = name.partition("__")
        inner = value
        if field:
            old = getattr(built, parent)
            changed = getattr(old, "clone", lambda old=old, **kw: dataclasses.replace(old, **kw))
            inner = changed(**{field: value})
        built = dataclasses.replace(built, **{parent: inner})
    return built


def start(
    config: pathlib.Path,
    run_dir: pathlib.Path,
    *args: str,
    env: dict[str, str] | None = None,
    **kwargs,
) -> subprocess.Popen:
    """Starts `train.py` as a process group of its own, on one device, output to a file."""
    env = os.environ | {"XLA_FLAGS": ""} | (env or {})
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with open(run_dir.parent / f"{run_dir.name}.out", "a") as out:
        return subprocess.Popen(
            [sys.executable, "train.py", str(config), "--run.dir", str(run_dir), *args],
            cwd=ROOT,
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **kwargs,
        )


def output(run_dir: pathlib.Path) -> str:
    """All that the processes of a run have printed, on one line."""
    return " ".join((run_dir.parent / f"{run_dir.name}.out").read_text().split())


def finish(config: pathlib.Path, run_dir: pathlib.Path, *args: str, **kwargs) -> None:
    process = start(config, run_dir, *args, **kwargs)
    assert process.wait(timeout=300) == 0, output(run_dir)


def wait_for_step(process: subprocess.Popen, run_dir: pathlib.Path, step: int) -> None:
    """Waits until a run has logged `step`."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ended early: {output(run_dir)}"
        if (run_dir / "log.jsonl").exists() and f'"step": {step},' in log_text(run_dir):
            return
        time.sleep(0.002)
    raise TimeoutError(f"step {step} was never logged: {output(run_dir)}")


def log_text(run_dir: pathlib.Path) -> str:
    return (run_dir / "log.jsonl").read_text()


def losses(run_dir: pathlib.Path) -> dict[int, list[float]]:
    """Every loss that was logged, by step; a step that was run again has several."""
    logged: dict[int, list[float]] = {}
    for line in log_text(run_dir).splitlines():
        values = json.loads(line)
        logged.setdefault(values["step"], []).append(values["loss"])
    return logged


def assert_same_run(run_dir: pathlib.Path, reference: pathlib.Path) -> None:
    """Every logged loss and all final parameters are bit-equal."""
    expected = {step: values[0] for step, values in losses(reference).items()}
    found = losses(run_dir)
    assert found.keys() == expected.keys()
    for step, values in found.items():
        assert set(values) == {expected[step]}, f"step {step}"
    for ema in (None, 0.9, 0.99):
        a, b = load(str(run_dir), ema), load(str(reference), ema)
        assert a.step == b.step
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
