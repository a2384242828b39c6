"""Guidance: a denoiser pushed away from a worse one.

Guidance takes a denoiser and returns one (diffusion/denoiser.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dit_jax.diffusion.denoiser import CachingDenoiser, Condition, Denoiser


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
        self,
        denoise: Denoiser | CachingDenoiser,
        null_condition: Callable[[Condition], Condition],
    ) -> Denoiser | CachingDenoiser:
        """Wraps a denoiser, given the map from a condition to its absence.

        Of one that caches, both halves of the pair are cached, and refreshed together: outside the
        interval too, so that guidance finds both wherever it sets in.
        """

        def twice(x: jax.Array, condition: Condition) -> tuple[jax.Array, Condition]:
            null = null_condition(condition)
            pair = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), condition, null)
            return jnp.concatenate([x, x]), pair

        def extrapolate(output: jax.Array, x: jax.Array) -> jax.Array:
            conditional, unconditional = jnp.split(output, 2)
            return self._extrapolate(conditional, unconditional, self.channels or x.shape[-1])

        def guided(x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
            def both() -> jax.Array:
                doubled, pair = twice(x, condition)
                return extrapolate(denoise(doubled, t, pair), x)

            return jax.lax.cond(self._inside(t), both, lambda: denoise(x, t, condition))

        def start(x: jax.Array, condition: Condition) -> Any:
            return denoise.start(*twice(x, condition))

        def evaluate(x: jax.Array, t: jax.Array, condition: Condition, cache: Any, refresh):
            inside = self._inside(t)

            def both() -> tuple[jax.Array, Any]:
                doubled, pair = twice(x, condition)
                output, kept = denoise.evaluate(doubled, t, pair, cache, refresh)
                return jnp.where(inside, extrapolate(output, x), output[: len(x)]), kept

            def alone() -> tuple[jax.Array, Any]:
                half = jax.tree.map(lambda leaf: leaf[: len(x)], cache)
                output, half = denoise.evaluate(x, t, condition, half, False)
                return output, jax.tree.map(lambda c, h: c.at[: len(x)].set(h), cache, half)

            return jax.lax.cond(inside | refresh, both, alone)

        caches = isinstance(denoise, CachingDenoiser)
        return CachingDenoiser(start, evaluate) if caches else guided


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
