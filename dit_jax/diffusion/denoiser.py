"""What solvers run: a denoiser, which may keep something from one evaluation to the next.

A denoiser is a function (x, t, condition) -> output, t a scalar of library time (0 data, 1 noise,
never the model's own clock). Two kinds more let costly parts of a model be reused:

- a `CachingDenoiser` is told at each evaluation whether to refresh its cache. A model that can
  reuse something is made into one; guidance takes one and returns one.
- a `StatefulDenoiser` decides by itself, and a solver carries its state. A rule for when to
  refresh, such as `Sharing`, makes one of the former; `stateful` makes one of a plain denoiser.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Condition = dict[str, jax.Array]
Denoiser = Callable[[jax.Array, jax.Array, Condition], jax.Array]


@dataclasses.dataclass(frozen=True)
class CachingDenoiser:
    """A denoiser that can use again what it computed at an earlier evaluation.

    Attributes:
      start: (x, condition) -> an empty cache, to be refreshed before it is of use: a pytree of
        arrays [B, ...].
      evaluate: (x, t, condition, cache, refresh) -> (output, cache); `refresh` is a scalar bool, at
        True the given cache is not looked at.
    """

    start: Callable[[jax.Array, Condition], Any]
    evaluate: Callable[..., tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class StatefulDenoiser:
    """A denoiser with a state.

    Attributes:
      start: (x, condition) -> the state before the first evaluation, any pytree of arrays.
      evaluate: (x, t, condition, state) -> (output, state).
    """

    start: Callable[[jax.Array, Condition], Any]
    evaluate: Callable[..., tuple[jax.Array, Any]]


def stateful(denoise: Denoiser | StatefulDenoiser) -> StatefulDenoiser:
    """Returns a denoiser with a state, that of a plain denoiser being empty."""
    if isinstance(denoise, StatefulDenoiser):
        return denoise
    return StatefulDenoiser(
        lambda x, condition: (), lambda x, t, condition, state: (denoise(x, t, condition), state)
    )


def cache_first_half(encode: Denoiser, decode: Callable[..., jax.Array]) -> CachingDenoiser:
    """Makes a denoiser of two halves, and caches what the first one returns.

    Args:
      encode: (x, t, condition) -> a pytree of arrays [B, ...]; runs at a refresh alone.
      decode: (x, t, condition, what `encode` returned) -> output; runs at every evaluation.
    """

    def start(x: jax.Array, condition: Condition) -> Any:
        shapes = jax.eval_shape(encode, x, jnp.zeros(()), condition)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def evaluate(x: jax.Array, t: jax.Array, condition: Condition, cache: Any, refresh: jax.Array):
        cache = jax.lax.cond(refresh, lambda: encode(x, t, condition), lambda: cache)
        return decode(x, t, condition, cache), cache

    return CachingDenoiser(start, evaluate)
