"""Which times are trained on."""

import abc
import dataclasses

import jax


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


def shift_time(t: jax.Array, shift: float) -> jax.Array:
    """Moves times towards noise for `shift` > 1, keeping both ends (arXiv 2403.03206, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)
