"""The sampling loop: keys to samples."""

import dataclasses

import jax

from dit_jax.diffusion.denoiser import Condition, Denoiser, StatefulDenoiser
from dit_jax.diffusion.guidance import Autoguidance, Guidance
from dit_jax.diffusion.process import Process
from dit_jax.diffusion.sharing import Sharing
from dit_jax.diffusion.solvers import Solver
from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
      solver: from noise to data.
      guidance: how the denoiser is pushed, or None.
      sharing: evaluations that share the output of a condition encoder, for a model that has one.
    """

    solver: Solver
    guidance: Guidance | None = None
    sharing: Sharing = Sharing()

    def check(self, process: Process) -> None:
        """Raises InputError where the parts do not fit each other or the process."""
        self.solver.check(process)
        if self.sharing.acts:
            self.sharing.refreshes(self.solver.evaluations(process))
            if isinstance(self.guidance, Autoguidance):
                raise InputError(
                    "Autoguidance has two models, and shares the encoder of neither: leave "
                    "sharing or guidance out"
                )


def sample_keys(seed: int | jax.Array, indices: jax.Array) -> jax.Array:
    """Returns one key a sample, a function of the seed and the sample's number alone."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), indices)


def sample_loop(
    process: Process,
    solver: Solver,
    denoise: Denoiser | StatefulDenoiser,
    condition: Condition,
    keys: jax.Array,
    shape: tuple[int, ...],
) -> jax.Array:
    """Draws samples [B, *shape], float32, one for each key [B].

    Raises:
      InputError: the solver does not fit the process.
    """
    x, keys = initial_noise(keys, shape)
    return solver(process, denoise, x, condition, keys)


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns noise [B, *shape], float32, and keys [B] for the steps that follow."""
    pairs = jax.vmap(jax.random.split)(keys)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(pairs[:, 0]), pairs[:, 1]
