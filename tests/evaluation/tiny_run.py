"""Runs that were never trained, whose parameters are random and all but zero."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.checkpoint import Checkpoints
from dit_jax.data import Digits
from dit_jax.diffusion import ClassifierFree, Euler, Flow, Sampling
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.models import DiT
from dit_jax.models.inputs import example_inputs
from dit_jax.run import Run
from dit_jax.training.state import new_state

STEPS, SCALE = 3, 2.0


def tiny_experiment(**changes):
    """A tiny experiment on digits, with parts replaced."""
    parts = {
        "model": DiT(patch=4, hidden=16, depth=2, heads=2, num_classes=10, learn_sigma=False),
        "process": Flow(),
        "data": Digits(),
        "sampling": Sampling(Euler(steps=STEPS), ClassifierFree(SCALE)),
        "training": Training(ema=(0.9,)),
        "run": RunFolder("unset"),
    }
    return Experiment(**parts | changes)


def random_params(model, shape, seed):
    """Parameters from normal(0, 0.3): as initialised, a DiT returns zeros for every input."""
    abstract = jax.eval_shape(model.init, *example_inputs(shape))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract)


def tiny_run(seed=0, **changes):
    """A run of the tiny experiment, step 7."""
    experiment = tiny_experiment(**changes)
    experiment.check()
    params = random_params(experiment.model, experiment.shape, seed)
    return Run(experiment, experiment.shape, 7, params)


def save(folder, run):
    """Writes a run as training would have, before its first step."""
    experiment = dataclasses.replace(run.experiment, run=RunFolder(str(folder)))
    checkpoints = Checkpoints(str(folder))
    optimizer = experiment.optimizer.build(experiment.training.steps)
    params = jax.tree.map(jnp.asarray, run.params)
    checkpoints.save(new_state(params, optimizer, experiment.training.ema), experiment)
    checkpoints.close()
    return str(folder)


def with_sampling(run, *args):
    """The same run with another way to sample by default."""
    experiment = dataclasses.replace(run.experiment, sampling=Sampling(*args))
    return dataclasses.replace(run, experiment=experiment)
