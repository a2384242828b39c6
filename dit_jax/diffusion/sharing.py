"""When what a denoiser caches is computed anew."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion.denoiser import CachingDenoiser, Condition, StatefulDenoiser
from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sharing:
    """Evaluations share the output of a condition encoder, DDT's say (arXiv 2504.05741).

    Evaluations are numbered from 0, the noisiest; a step of Heun's method has two. The default
    shares nothing.

    Attributes:
      every: the encoder runs at every so many evaluations.
      steps: the evaluations at which it runs, in place of `every`; 0 is one of them.
    """

    every: int = 1
    steps: tuple[int, ...] = ()

    @property
    def acts(self) -> bool:
        """Whether anything may be shared."""
        return self != Sharing()

    def refreshes(self, evaluations: int) -> np.ndarray:
        """Tells for each of so many evaluations whether the cache is refreshed, [evaluations] bool.

        Raises:
          InputError: the steps do not begin with 0 or are not among the evaluations, or the fields
            contradict each other.
        """
        if self.every < 1 or (self.steps and self.every != 1):
            raise InputError(
                f"{self}: give `every`, at least 1, or the `steps` themselves, but not both"
            )
        if not self.steps:
            return np.arange(evaluations) % self.every == 0
        if 0 not in self.steps:
            raise InputError(f"{self}: the first evaluation has nothing to share: add step 0")
        if min(self.steps) < 0 or max(self.steps) >= evaluations:
            raise InputError(
                f"{self}: the solver has {evaluations} evaluations: give steps from 0 to "
                f"{evaluations - 1}"
            )
        return np.isin(np.arange(evaluations), self.steps)

    def __call__(self, denoise: CachingDenoiser, evaluations: int) -> StatefulDenoiser:
        """Wraps a denoiser for a solver that has so many evaluations."""
        refreshes = self.refreshes(evaluations)

        def start(x: jax.Array, condition: Condition) -> tuple[jax.Array, Any]:
            return jnp.int32(0), denoise.start(x, condition)

        def evaluate(x: jax.Array, t: jax.Array, condition: Condition, state):
            number, cache = state
            refresh = jnp.asarray(refreshes)[number]
            output, cache = denoise.evaluate(x, t, condition, cache, refresh)
            return output, (number + 1, cache)

        return StatefulDenoiser(start, evaluate)


def record(denoise: CachingDenoiser, evaluations: int) -> StatefulDenoiser:
    """Shares nothing and keeps all: the state ends as (count, caches, evaluations on axis 0)."""

    def start(x: jax.Array, condition: Condition) -> tuple[jax.Array, Any]:
        empty = denoise.start(x, condition)
        every = jax.tree.map(lambda leaf: jnp.zeros((evaluations, *leaf.shape), leaf.dtype), empty)
        return jnp.int32(0), every

    def evaluate(x: jax.Array, t: jax.Array, condition: Condition, state):
        number, every = state
        cache = jax.tree.map(lambda leaf: leaf[0], every)
        output, cache = denoise.evaluate(x, t, condition, cache, True)
        every = jax.tree.map(lambda kept, leaf: kept.at[number].set(leaf), every, cache)
        return output, (number + 1, every)

    return StatefulDenoiser(start, evaluate)
