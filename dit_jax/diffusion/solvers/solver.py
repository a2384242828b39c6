"""What every solver is: a function from noise to data, under jit."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax

from dit_jax.diffusion.denoiser import Condition, Denoiser, StatefulDenoiser, stateful
from dit_jax.diffusion.process import Process
from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Solver(abc.ABC):
    """Runs a process backwards; its fields are its configuration."""

    PROCESS: ClassVar[type[Process]] = Process

    def __call__(
        self,
        process: Process,
        denoise: Denoiser | StatefulDenoiser,
        x: jax.Array,
        condition: Condition,
        keys: jax.Array,
    ) -> jax.Array:
        """Solves from noise to data.

        Args:
          process: converts the denoiser's output.
          denoise: (x, t, condition) -> output, t a scalar of library time; or one with a state.
          x: standard normal noise [B, H, W, C], float32.
          condition: pytree of arrays [B, ...].
          keys: one typed key a sample [B], so that a sample does not depend on its batch.

        Returns:
          Samples [B, H, W, C], float32.

        Raises:
          InputError: the process is of another kind.
        """
        self.check(process)
        denoise = stateful(denoise)
        return self.solve(process, denoise, x, denoise.start(x, condition), condition, keys)[0]

    @abc.abstractmethod
    def solve(
        self,
        process: Process,
        denoise: StatefulDenoiser,
        x: jax.Array,
        state: Any,
        condition: Condition,
        keys: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """As a call, but from a given state of the denoiser; returns the last one too."""

    @abc.abstractmethod
    def evaluations(self, process: Process) -> int:
        """Returns how often the denoiser is evaluated.

        Raises:
          InputError: that depends on the samples.
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
