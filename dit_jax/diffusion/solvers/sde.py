"""Solvers of the reverse SDE dx = (v - D score) dt + sqrt(2 D) dW (SiT, arXiv 2401.08740).

In the library's clock, time runs down from noise to data, so a step of length h adds
h (-v + D score) and sqrt(2 D h) noise.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from dit_jax.diffusion.conversions import Estimate
from dit_jax.diffusion.flow import Flow
from dit_jax.diffusion.interpolants import VP
from dit_jax.diffusion.solvers.solver import Solver, normal_like

Diffusion = Literal["sbdm", "sigma", "linear", "constant", "decreasing", "sin"]
LastStep = Literal["mean", "euler", "tweedie", "none"]
# (x, state, t) -> (value, state)
Drift = Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]

# The "sbdm" diffusion of Linear and GVP is infinite at pure noise: start just short of it.
_SBDM_START = 1 - 1e-3


@dataclasses.dataclass(frozen=True)
class _SDE(Solver):
    """Steps on a fixed grid that ends `last_step_size` short of data, and one last step.

    Attributes:
      steps: number of model evaluation times, the last step included.
      diffusion: the form of D(t): that of the forward SDE, sigma(t), t, 1, or SiT's bumps.
      norm: factor on D.
      last_step: noiseless SDE step, ODE step, Tweedie's formula, or none.
      last_step_size: length of the last step.
    """

    PROCESS: ClassVar[type[Flow]] = Flow
    EVALUATIONS: ClassVar[int] = 1  # A step.
    steps: int = 250
    diffusion: Diffusion = "sigma"
    norm: float = 1.0
    last_step: LastStep = "mean"
    last_step_size: float = 0.04

    @abc.abstractmethod
    def step(
        self, drift: Drift, x: jax.Array, state: Any, t: jax.Array, h: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Moves `x` from t to t - h; `noise` is already scaled."""

    def evaluations(self, process):
        return (self.steps - 1) * self.EVALUATIONS + (self.last_step != "none")

    def solve(self, process, denoise, x, state, condition, keys):
        stop = 0.0 if self.last_step == "none" else self.last_step_size
        grid = process.grid(self.steps - 1, stop)
        if self.diffusion == "sbdm" and not isinstance(process.path, VP):
            grid = jnp.minimum(grid, _SBDM_START)

        def estimate(x: jax.Array, state: Any, t: jax.Array) -> tuple[Estimate, Any]:
            output, state = denoise.evaluate(x, t, condition, state)
            return process.estimate(x, t, output), state

        def drift(x: jax.Array, state: Any, t: jax.Array) -> tuple[jax.Array, Any]:
            e, state = estimate(x, state, t)
            return -e.velocity + self._diffusion(process, t) * e.score, state

        def body(carry: tuple[jax.Array, Any], scanned):
            (x, state), (number, t, after) = carry, scanned
            h = t - after
            scale = jnp.sqrt(2 * self._diffusion(process, t) * h)
            return self.step(drift, x, state, t, h, scale * normal_like(keys, x, number)), None

        numbers = jnp.arange(self.steps - 1)
        x, state = jax.lax.scan(body, (x, state), (numbers, grid[:-1], grid[1:]))[0]
        if self.last_step == "none":
            return x, state
        if self.last_step == "mean":
            value, state = drift(x, state, grid[-1])
            return x + grid[-1] * value, state
        e, state = estimate(x, state, grid[-1])
        return (e.x0 if self.last_step == "tweedie" else x - grid[-1] * e.velocity), state

    def _diffusion(self, process: Flow, t: jax.Array) -> jax.Array:
        forms = {
            "sbdm": lambda: self.norm * process.path.drift_diffusion(t),
            "sigma": lambda: self.norm * process.coefficients(t).sigma,
            "linear": lambda: self.norm * t,
            "constant": lambda: self.norm * jnp.ones_like(t),
            "decreasing": lambda: 0.25 * (self.norm * jnp.cos(jnp.pi * (1 - t)) + 1) ** 2,
            "sin": lambda: self.norm * jnp.sin(jnp.pi * t) ** 2,
        }
        return forms[self.diffusion]()


@dataclasses.dataclass(frozen=True)
class EulerMaruyama(_SDE):
    """First order; SiT's published numbers use it."""

    def step(self, drift, x, state, t, h, noise):
        value, state = drift(x, state, t)
        return x + h * value + noise, state


@dataclasses.dataclass(frozen=True)
class HeunSDE(_SDE):
    """Second order in the drift: the noise is added first (Karras et al., arXiv 2206.00364)."""

    EVALUATIONS: ClassVar[int] = 2

    def step(self, drift, x, state, t, h, noise):
        x = x + noise
        first, state = drift(x, state, t)
        second, state = drift(x + h * first, state, t - h)
        return x + h / 2 * (first + second), state
