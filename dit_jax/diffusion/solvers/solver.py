"""What every solver is: a function from noise to data, under jit."""

import abc
import dataclasses
from typing import ClassVar

import jax

from dit_jax.diffusion.guidance import Condition, Denoiser
from dit_jax.diffusion.process import Process
from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Solver(abc.ABC):
    """Runs a process backwards; its fields are its configuration."""

    PROCESS: ClassVar[type[Process]] = Process

    @abc.abstractmethod
    def __call__(
        self,
        process: Process,
        denoise: Denoiser,
        x: jax.Array,
        condition: Condition,
        keys: jax.Array,
    ) -> jax.Array:
        """Solves from noise to data.

        Args:
          process: converts the denoiser's output.
          denoise: (x, t, condition) -> output, t a scalar of library time.
          x: standard normal noise [B, H, W, C], float32.
          condition: pytree of arrays [B, ...].
          keys: one typed key a sample [B], so that a sample does not depend on its batch.

        Returns:
          Samples [B, H, W, C], float32.
        """

    def check(self, process: Process) -> None:
        """Raises InputError if this solver cannot run `process`."""
        if not isinstance(process, self.PROCESS):
            raise InputError(
                f"{type(self).__name__} solves a {self.PROCESS.__name__} process, not "
                f"{type(process).__name__}: choose DDPM or DDIM for Gaussian, an ODE or SDE solver "
                f"for Flow"
            )


def normal_like(keys: jax.Array, x: jax.Array, step: jax.Array | int) -> jax.Array:
    """Draws normal noise shaped as `x`, each sample from its own key and the step's number."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), x.shape[1:]))(keys)
