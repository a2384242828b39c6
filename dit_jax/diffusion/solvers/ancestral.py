"""Solvers of the discrete Gaussian process."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion.gaussian import Gaussian, Transition
from dit_jax.diffusion.respacing import respace
from dit_jax.diffusion.solvers.solver import Solver, normal_like


@dataclasses.dataclass(frozen=True)
class _Discrete(Solver):
    """A scan over kept indices, from the noisiest down.

    Attributes:
      steps: number of steps, or ADM's respacing: 'a,b,c' (per section) or 'ddimN'.
    """

    PROCESS: ClassVar[type[Gaussian]] = Gaussian
    steps: int | str = 250

    @abc.abstractmethod
    def step(
        self, process: Gaussian, x: jax.Array, output: jax.Array, row: Transition, noise: jax.Array
    ) -> jax.Array:
        """Moves `x` to the kept index before, given the model's output and fresh noise."""

    def evaluations(self, process):
        return len(respace(process.steps, self.steps))

    def solve(self, process, denoise, x, state, condition, keys):
        table = process.transitions(respace(process.steps, self.steps))
        table = Transition(*(column[::-1] for column in table))

        def body(carry: tuple[jax.Array, Any], scanned: tuple[jax.Array, Transition]):
            (x, state), (number, row) = carry, scanned
            output, state = denoise.evaluate(x, row.index / process.steps, condition, state)
            x = self.step(process, x, output, row, normal_like(keys, x, number))
            return (x, state), None

        numbers = np.arange(len(table.index))
        return jax.lax.scan(body, (x, state), (numbers, table))[0]


@dataclasses.dataclass(frozen=True)
class DDPM(_Discrete):
    """Ancestral sampling (DDPM, arXiv 2006.11239, algorithm 2), the sampler of DiT's numbers."""

    def step(self, process, x, output, row, noise):
        mean, log_variance = process.reverse(x, output, row)
        # The last step, to data, is the mean itself.
        return mean + jnp.where(row.alpha_before < 1, jnp.exp(log_variance / 2) * noise, 0)


@dataclasses.dataclass(frozen=True)
class DDIM(_Discrete):
    """Denoising diffusion implicit models (arXiv 2010.02502, eq. 12).

    Attributes:
      eta: 0 is deterministic, 1 is as random as DDPM.
    """

    steps: int | str = 50
    eta: float = 0.0

    def step(self, process, x, output, row, noise):
        epsilon = output[..., : x.shape[-1]]
        x0 = (x - row.sigma * epsilon) / row.alpha
        variance_before = 1 - row.alpha_before**2
        ratio = row.alpha / row.alpha_before
        sigma = self.eta * jnp.sqrt(variance_before / row.sigma**2 * (1 - ratio**2))
        direction = jnp.sqrt(jnp.maximum(variance_before - sigma**2, 0))
        return row.alpha_before * x0 + direction * epsilon + sigma * noise
