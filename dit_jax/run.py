"""A trained run, opened from its checkpoint alone."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import SingleDeviceSharding

from dit_jax import serialization
from dit_jax.checkpoint import Checkpoints, ema_item, newest
from dit_jax.diffusion import Process
from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.latents import Latents
from dit_jax.models.inputs import abstract_parameters
from dit_jax.parallel.sharding import Layout
from dit_jax.training.state import with_shardings


@dataclasses.dataclass(frozen=True)
class Run:
    """A model with its parameters and all that it takes to use them.

    Attributes:
      experiment: the configuration that made it.
      shape: shape [h, w, c] of one sample of the space that is diffused.
      step: optimizer steps taken.
      params: parameters, an EMA unless asked otherwise.
    """

    experiment: Experiment
    shape: tuple[int, int, int]
    step: int
    params: Any = dataclasses.field(repr=False)

    @property
    def model(self) -> nn.Module:
        """The backbone."""
        return self.experiment.model

    @property
    def process(self) -> Process:
        """How data was noised and what the model predicts."""
        return self.experiment.process

    @property
    def latents(self) -> Latents:
        """The space that is diffused."""
        return self.experiment.latents


def load(folder: str, ema: float | None | str = "first", layout: Layout | None = None) -> Run:
    """Opens a run folder, or one of its checkpoints.

    Args:
      folder: a run folder (its newest checkpoint is taken), or `RUN/checkpoints/STEP`.
      ema: which parameters: the first EMA by default, one decay, or None for the raw ones. A
        converted checkpoint has one set alone.
      layout: where the parameters shall lie; on one device by default.

    Raises:
      InputError: there is no checkpoint, it lacks that EMA, or a size does not divide.
    """
    checkpoints, item, run = _open(folder, ema, layout)
    params = checkpoints.restore(run.step, {item: run.params})[item]
    return dataclasses.replace(run, params=params)


def describe(folder: str, layout: Layout) -> Run:
    """Opens a run as `load` does, but with the shapes and places of its parameters for them."""
    return _open(folder, "first", layout)[-1]


def mismatches(there: Run, here: Experiment) -> list[str]:
    """Why a run's model cannot stand beside that of an experiment, at the same inputs.

    Which times were trained makes no difference.
    """
    free = ("process.time", "process.shift", "process.loss_weight")
    process = serialization.differences(there.process, here.process, "process")
    return [
        *different("samples", there.shape, here.shape),
        *different("classes", there.model.num_classes, here.model.num_classes),
        *(line for line in process if not line.startswith(free)),
    ]


def different(what: str, there: Any, here: Any) -> list[str]:
    """A line that says how two things differ, or none."""
    return [] if there == here else [f"{what}: {there} there, {here} here"]


def _open(
    folder: str, ema: float | None | str, layout: Layout | None
) -> tuple[Checkpoints, str, Run]:
    checkpoints, step = newest(folder)
    experiment, shape = checkpoints.experiment(step)
    decays = experiment.training.ema
    decay = (decays or (None,))[0] if ema == "first" else ema
    if decay is not None and decay not in decays:
        raise InputError(f"'{folder}' has no EMA of decay {decay}: choose one of {decays} or None")
    item = "params" if decay is None else ema_item(decay)
    abstract = abstract_parameters(experiment.model, shape)
    device = SingleDeviceSharding(jax.local_devices()[0])
    shardings = layout.parameters(abstract) if layout else jax.tree.map(lambda _: device, abstract)
    return checkpoints, item, Run(experiment, shape, step, with_shardings(abstract, shardings))
