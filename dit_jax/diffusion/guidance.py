"""Guidance: a denoiser pushed away from a worse one.

A denoiser is a function (x, t, condition) -> output, t a scalar of library time (0 data, 1 noise,
never the model's own clock); guidance takes one and returns one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Condition = dict[str, jax.Array]
Denoiser = Callable[[jax.Array, jax.Array, Condition], jax.Array]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Extrapolates from a weak prediction beyond a strong one: weak + scale (strong - weak).

    Attributes:
      scale: guidance scale; 1 is no guidance.
      interval: library times (0 data, 1 noise) within which it acts (arXiv 2404.07724).
    """

    scale: float = 1.5
    interval: tuple[float, float] = (0.0, 1.0)

    def _inside(self, t: jax.Array) -> jax.Array:
        return (t >= self.interval[0]) & (t <= self.interval[1])

    def _extrapolate(self, strong: jax.Array, weak: jax.Array, channels: int) -> jax.Array:
        """Guides the first `channels`; the others stay the strong model's own."""
        guided = weak + self.scale * (strong - weak)
        return jnp.concatenate([guided[..., :channels], strong[..., channels:]], axis=-1)


@dataclasses.dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Classifier-free guidance: the weak model is the same one without condition.

    Ho & Salimans, arXiv 2207.12598.

    Attributes:
      channels: how many channels are guided; None is all of the image's. The released DiT and SiT
        guide 3 of 4, and their published FIDs are made so.
    """

    channels: int | None = None

    def __call__(
        self, denoise: Denoiser, null_condition: Callable[[Condition], Condition]
    ) -> Denoiser:
        """Wraps a denoiser, given the map from a condition to its absence."""

        def guided(x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
            def both() -> jax.Array:
                pair = jax.tree.map(
                    lambda c, n: jnp.concatenate([c, n]), condition, null_condition(condition)
                )
                output = denoise(jnp.concatenate([x, x]), t, pair)
                conditional, unconditional = jnp.split(output, 2)
                return self._extrapolate(conditional, unconditional, self.channels or x.shape[-1])

            return jax.lax.cond(self._inside(t), both, lambda: denoise(x, t, condition))

        return guided


@dataclasses.dataclass(frozen=True)
class Autoguidance(Guidance):
    """The weak model is another one: smaller, or trained for less (arXiv 2406.02507)."""

    def __call__(self, denoise: Denoiser, weak: Denoiser) -> Denoiser:
        """Wraps a denoiser, given a worse one."""

        def guided(x: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
            def both() -> jax.Array:
                strong = denoise(x, t, condition)
                return self._extrapolate(strong, weak(x, t, condition), x.shape[-1])

            return jax.lax.cond(self._inside(t), both, lambda: denoise(x, t, condition))

        return guided
