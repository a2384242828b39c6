"""A folder in which the documentation's commands find what earlier ones would have made."""

import contextlib
import io
import logging
import os
import pathlib
import runpy
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from dit_jax import cli, serialization
from dit_jax.data import ImageFolder, Photos
from dit_jax.experiment import Experiment
from dit_jax.training.reconstruction.experiment import DecoderExperiment
from tests.docs.blocks import ROOT

KINDS = (Experiment, DecoderExperiment)
_LINKED = ("configs", "launch", "benchmarks", "tools", "train.py", "evaluate.py", "pyproject.toml")
_LOGGERS = ("dit_jax", "orbax", "absl", "jax", "grain")
_SMALL = {
    "training.steps": 2,
    "training.batch-size": 8,
    "run.log-every": 1,
    "run.sample-every": 0,
    "run.save-every": 2,
}
_SMALL_EVALUATION = {
    "evaluation.batch-size": 8,
    "evaluation.every": 0,
    "evaluation.samples": 0,
    "evaluation.held-out": 0,
}
# The same for every training, so that runs start from each other and teach each other.
_SMALL_MODEL = {"model.depth": 2, "model.hidden": 32, "model.heads": 2}


def small_options(experiment: Any) -> list[str]:
    """Options that make a training one of seconds."""
    options = dict(_SMALL)
    if isinstance(experiment.data, ImageFolder):
        options["data.size"] = 16
    if isinstance(experiment.data, Photos):
        options["data.crops"] = 10
    if isinstance(experiment, Experiment):
        options |= _SMALL_EVALUATION
        if type(experiment.model).__name__ == "DiT":
            options |= _SMALL_MODEL
        if hasattr(experiment.sampling.solver, "steps"):
            options["sampling.solver.steps"] = 2
        if experiment.evaluation.judge is not None:
            options["evaluation.judge.epochs"] = 1
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def shrunk(args: list[str]) -> list[str]:
    """Arguments of `train.py` and more that make what they train small."""
    config = args[0] if args and not args[0].startswith("-") else "configs/digits.py"
    return [*args, *small_options(cli.load_config(config, KINDS))]


def build(folder: pathlib.Path) -> None:
    """Fills a folder with a checkout's files, own images, and runs of earlier commands."""
    for name in _LINKED:
        (folder / name).symlink_to(ROOT / name)
    random = np.random.default_rng(0)
    places = [f"photos/{name}" for name in ("0_cats", "1_dogs", "2_birds")]
    for place in [*places, "faces"]:
        (folder / place).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{number}.png")
    with inside(folder):
        run("train.py", shrunk(["configs/digits.py"]))


def run(script: str, args: list[str]) -> None:
    """Runs a script of the repository in this process, as the command line would.

    Raises:
      AssertionError: it exits with another status than 0, with what it printed.
    """
    printed = io.StringIO()
    argv, sys.argv = sys.argv, [script, *args]
    try:
        with contextlib.redirect_stderr(printed):
            if script == "dit_jax":
                runpy.run_module("dit_jax", run_name="__main__", alter_sys=False)
            else:
                runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as error:
        assert not error.code, f"exit status {error.code}: {printed.getvalue()}"
    finally:
        sys.argv = argv


@contextlib.contextmanager
def inside(folder: pathlib.Path) -> Iterator[None]:
    """Works in a folder, and leaves directory, imports and logging as they were."""
    path, before = list(sys.path), pathlib.Path.cwd()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    states = [(log.handlers, log.propagate, log.level) for log in loggers]
    os.chdir(folder)
    try:
        with packages(folder):
            yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        for log, state in zip(loggers, states):
            log.handlers, log.propagate = state[:2]
            log.setLevel(state[2])


@contextlib.contextmanager
def packages(folder: pathlib.Path) -> Iterator[None]:
    """Lets modules written under folder/dit_jax be imported as parts of the package."""
    import dit_jax.attention
    import dit_jax.moe.routers

    opened = [dit_jax.attention, dit_jax.moe.routers]
    known = set(sys.modules)
    for package in opened:
        package.__path__.append(str(folder / package.__name__.replace(".", "/")))
    try:
        yield
    finally:
        for package in opened:
            package.__path__.pop()
        for name in set(sys.modules) - known:
            module = sys.modules[name]
            if str(folder) in (getattr(module, "__file__", None) or ""):
                del sys.modules[name]


def check(experiment: Any) -> None:
    """That an experiment's parts fit each other, and that a checkpoint can hold it."""
    assert isinstance(experiment, KINDS)
    serialization.to_json(experiment)
    experiment.check()
