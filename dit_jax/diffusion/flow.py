"""Continuous flow and diffusion: stochastic interpolants (SiT, arXiv 2401.08740)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from dit_jax.diffusion.conversions import Coefficients, Estimate, Prediction, estimate
from dit_jax.diffusion.interpolants import VP, Interpolant, Linear
from dit_jax.diffusion.process import Process, expand, per_sample_mean
from dit_jax.diffusion.time import TimeSampler, Uniform, shift_time


@dataclasses.dataclass(frozen=True)
class Flow(Process):
    """A continuous path between data and noise, learned as one of four predictions.

    Attributes:
      path: the interpolant.
      prediction: what the model's output means.
      loss_weight: weight of the loss in time for the noise and score predictions: 1, (w/sigma)^2
        or w/sigma^2, with w the diffusion of the reverse SDE (SiT, section 3). Velocity and x0
        predictions take `uniform`.
      time: distribution of training times, before the shift.
      shift: moves training and sampling times towards noise, for large or deep latents
        (SD3, arXiv 2403.03206; RAE, arXiv 2510.11690).
      data_time: the time at which the model's own clock has data: 0 as in this library, or 1 as in
        SiT, whose velocity then also has the other sign.
      time_scale: what the model's own clock counts in a unit of time: 1000 for ProMoE.
    """

    path: Interpolant = dataclasses.field(default_factory=Linear)
    prediction: Prediction = "velocity"
    loss_weight: Literal["uniform", "velocity", "likelihood"] = "uniform"
    time: TimeSampler = dataclasses.field(default_factory=Uniform)
    shift: float = 1.0
    data_time: Literal[0, 1] = 0
    time_scale: float = 1.0

    def interval(self, training: bool) -> tuple[float, float]:
        """The times that are trained or sampled: short of the ends where a conversion divides by 0.

        SiT's choices: VP stops 1e-5 (training) or 1e-3 (sampling) short of data; the other paths
        stop 1e-3 short of both ends unless the velocity itself is predicted.
        """
        if isinstance(self.path, VP):
            return (1e-5 if training else 1e-3), 1.0
        return (0.0, 1.0) if self.prediction == "velocity" else (1e-3, 1 - 1e-3)

    def sample_time(self, key, batch):
        start, stop = self.interval(training=True)
        return start + (stop - start) * shift_time(self.time(key, batch), self.shift)

    def coefficients(self, t):
        return self.path(t)

    def model_time(self, t):
        return self.time_scale * (1 - t if self.data_time == 1 else t)

    def grid(self, steps: int, stop: float = 0.0) -> jax.Array:
        """Returns the sampling times [steps + 1], from noise to data (or to `stop`), shifted."""
        low, high = self.interval(training=False)
        return shift_time(jnp.linspace(high, max(low, stop), steps + 1), self.shift)

    def estimate(self, x, t, output) -> Estimate:
        return estimate(self.prediction, self._signed(x, output), x, self.path(expand(t, x)))

    def loss(self, output, x0, noise, t):
        c = self.path(expand(t, x0))
        prediction = self._signed(x0, output)
        if self.prediction == "velocity":
            error = prediction - (c.d_alpha * x0 + c.d_sigma * noise)
        elif self.prediction == "x0":
            error = prediction - x0
        elif self.prediction == "noise":
            error = prediction - noise
        else:  # The score is -noise / sigma: compare in units of noise.
            error = prediction * c.sigma + noise
        return per_sample_mean(jnp.square(error)) * self._weight(t, self.path(t)), {}

    def _signed(self, x: jax.Array, output: jax.Array) -> jax.Array:
        """The library-signed prediction; a second half of channels (learned sigma) is not used."""
        output = output[..., : x.shape[-1]]
        return -output if self.prediction == "velocity" and self.data_time == 1 else output

    def _weight(self, t: jax.Array, c: Coefficients) -> jax.Array | float:
        if self.loss_weight == "uniform" or self.prediction in ("velocity", "x0"):
            return 1.0
        power = 2 if self.loss_weight == "velocity" else 1
        return self.path.drift_diffusion(t) ** power / c.sigma**2
