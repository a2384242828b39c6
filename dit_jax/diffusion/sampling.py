"""The sampling loop: keys to samples."""

import dataclasses

import jax

from dit_jax.diffusion.guidance import Condition, Denoiser, Guidance
from dit_jax.diffusion.process import Process
from dit_jax.diffusion.solvers import Solver


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
      solver: from noise to data.
      guidance: how the denoiser is pushed, or None.
    """

    solver: Solver
    guidance: Guidance | None = None


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
    """Returns one key a sample, a function of the seed and the sample's number alone."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), indices)


def sample_loop(
    process: Process,
    solver: Solver,
    denoise: Denoiser,
    condition: Condition,
    keys: jax.Array,
    shape: tuple[int, ...],
) -> jax.Array:
    """Draws samples [B, *shape], float32, one for each key [B].

    Raises:
      InputError: the solver does not fit the process.
    """
    pairs = jax.vmap(jax.random.split)(keys)
    x = jax.vmap(lambda key: jax.random.normal(key, shape))(pairs[:, 0])
    return solver(process, denoise, x, condition, pairs[:, 1])
