"""Which times are trained on."""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class TimeSampler(abc.ABC):
    """A distribution over [0, 1]."""

    @abc.abstractmethod
    def __call__(self, key: jax.Array, batch: int) -> jax.Array:
        """Draws times [batch], float32."""


@dataclasses.dataclass(frozen=True)
class Uniform(TimeSampler):
    """All times equally often."""

    def __call__(self, key, batch):
        return jax.random.uniform(key, (batch,))


@dataclasses.dataclass(frozen=True)
class LogitNormal(TimeSampler):
    """sigmoid of a normal: the middle of the path more often (SD3, arXiv 2403.03206, eq. 19).

    Attributes:
      mean: location before the sigmoid; positive leans towards noise.
      std: scale before the sigmoid.
    """

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, key, batch):
        return jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (batch,)))


@dataclasses.dataclass(frozen=True)
class TruncatedLogitNormal(TimeSampler):
    """A logit-normal without the times beyond `stop`, by its inverse distribution function.

    RAE (arXiv 2510.11690) trains on it.

    Attributes:
      mean: location before the sigmoid; positive leans towards noise.
      std: scale before the sigmoid.
      stop: largest time.
    """

    mean: float = 0.0
    std: float = 1.0
    stop: float = 0.999

    def __call__(self, key, batch):
        cut = (math.log(self.stop / (1 - self.stop)) - self.mean) / self.std
        share = jax.random.uniform(key, (batch,), maxval=jax.scipy.stats.norm.cdf(cut))
        # Beyond the least float that is not zero, the normal is infinite.
        normal = jax.scipy.special.ndtri(jnp.maximum(share, jnp.finfo(share.dtype).tiny))
        return jax.nn.sigmoid(self.mean + self.std * normal)


def dimension_shift(shape: tuple[int, ...], base: int = 4096) -> float:
    """The shift for samples of many dimensions: sqrt(dimensions / base) (arXiv 2510.11690).

    Noise hides a sample of more dimensions less, so that training and sampling need more of it.

    Args:
      shape: shape of one sample, such as (16, 16, 768).
      base: dimensions whose times need no shift.
    """
    return math.sqrt(math.prod(shape) / base)


def shift_time(t: jax.Array, shift: float) -> jax.Array:
    """Moves times towards noise for `shift` > 1, keeping both ends (arXiv 2403.03206, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)
