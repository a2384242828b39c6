"""A process noises data and says what a network should learn from it."""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from dit_jax.diffusion.conversions import Coefficients, Estimate


def expand(t: jax.Array, x: jax.Array) -> jax.Array:
    """Appends axes to `t` (scalar or [B]) until it broadcasts against `x` [B, ...]."""
    t = jnp.asarray(t)
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


def per_sample_mean(x: jax.Array) -> jax.Array:
    """Averages [B, ...] over all axes but the first."""
    return x.mean(axis=tuple(range(1, x.ndim)))


@dataclasses.dataclass(frozen=True)
class Process(abc.ABC):
    """x_t = alpha(t) x0 + sigma(t) noise, for t in [0, 1]: 0 is data, 1 is noise.

    Another clock or sign, which a checkpoint was trained with, is met here alone: `model_time` maps
    the library's time to the model's, and `estimate` maps the model's output back.
    """

    @abc.abstractmethod
    def sample_time(self, key: jax.Array, batch: int) -> jax.Array:
        """Draws training times [batch], float32."""

    @abc.abstractmethod
    def coefficients(self, t: jax.Array) -> Coefficients:
        """Returns alpha, sigma and their derivatives at times `t` (any shape)."""

    @abc.abstractmethod
    def model_time(self, t: jax.Array) -> jax.Array:
        """Maps library time to the clock of the model, float32."""

    @abc.abstractmethod
    def estimate(self, x: jax.Array, t: jax.Array, output: jax.Array) -> Estimate:
        """Converts a model's output at `x` [B, H, W, C] and `t` (scalar or [B])."""

    @abc.abstractmethod
    def loss(
        self, output: jax.Array, x0: jax.Array, noise: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of each sample [B], float32, and scalar metrics.

        Args:
          output: the model's output at `corrupt(x0, noise, t)`.
          x0: data [B, H, W, C].
          noise: standard normal noise, shaped as `x0`.
          t: times [B].
        """

    def output_channels(self, channels: int) -> int:
        """How many output channels a model needs for samples of so many channels."""
        return channels

    def corrupt(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Noises data [B, H, W, C] to times [B]."""
        c = self.coefficients(expand(t, x0))
        return c.alpha * x0 + c.sigma * noise
