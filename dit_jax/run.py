"""A trained run, opened from its checkpoint alone."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import SingleDeviceSharding

from dit_jax.checkpoint import ema_item, newest
from dit_jax.diffusion import Process
from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.latents import Latents
from dit_jax.models.inputs import example_inputs
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
    params: Any

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
    checkpoints, step = newest(folder)
    experiment, shape = checkpoints.experiment(step)
    decays = experiment.training.ema
    decay = (decays or (None,))[0] if ema == "first" else ema
    if decay is not None and decay not in decays:
        raise InputError(f"'{folder}' has no EMA of decay {decay}: choose one of {decays} or None")
    item = "params" if decay is None else ema_item(decay)
    abstract = jax.eval_shape(experiment.model.init, *example_inputs(shape))["params"]
    device = SingleDeviceSharding(jax.local_devices()[0])
    shardings = layout.parameters(abstract) if layout else jax.tree.map(lambda _: device, abstract)
    abstract = with_shardings(abstract, shardings)
    params = checkpoints.restore(step, {item: abstract})[item]
    return Run(experiment, shape, step, params)
