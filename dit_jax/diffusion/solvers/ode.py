"""Solvers of the probability-flow ODE dx/dt = velocity."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax

from dit_jax.diffusion.flow import Flow
from dit_jax.diffusion.solvers.solver import Solver
from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class _FixedGrid(Solver):
    """A scan over a fixed grid of times.

    Attributes:
      steps: number of steps; SiT's and RAE's `num_steps` count grid points and are one more.
      stop: where the grid ends, before times are shifted; no last step leads from there to data.
    """

    PROCESS: ClassVar[type[Flow]] = Flow
    EVALUATIONS: ClassVar[int] = 1  # A step.
    steps: int = 50
    stop: float = 0.0

    @abc.abstractmethod
    def step(
        self, velocity, x: jax.Array, state: Any, t: jax.Array, dt: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Moves `x` from t to t + dt (dt < 0), given velocity(x, state, t) -> (value, state)."""

    def evaluations(self, process):
        return self.steps * self.EVALUATIONS

    def solve(self, process, denoise, x, state, condition, keys):
        grid = process.grid(self.steps, self.stop)

        def velocity(x: jax.Array, state: Any, t: jax.Array) -> tuple[jax.Array, Any]:
            output, state = denoise.evaluate(x, t, condition, state)
            return process.estimate(x, t, output).velocity, state

        def body(carry: tuple[jax.Array, Any], ends: tuple[jax.Array, jax.Array]):
            t, after = ends
            return self.step(velocity, *carry, t, after - t), None

        return jax.lax.scan(body, (x, state), (grid[:-1], grid[1:]))[0]


@dataclasses.dataclass(frozen=True)
class Euler(_FixedGrid):
    """First order: one evaluation a step."""

    def step(self, velocity, x, state, t, dt):
        value, state = velocity(x, state, t)
        return x + dt * value, state


@dataclasses.dataclass(frozen=True)
class Heun(_FixedGrid):
    """Second order: two evaluations a step."""

    EVALUATIONS: ClassVar[int] = 2

    def step(self, velocity, x, state, t, dt):
        first, state = velocity(x, state, t)
        second, state = velocity(x + dt * first, state, t + dt)
        return x + dt / 2 * (first + second), state


@dataclasses.dataclass(frozen=True)
class Dopri5(Solver):
    """Adaptive Dormand-Prince 5(4), by diffrax; each sample has steps of its own.

    Attributes:
      rtol: relative tolerance. At SiT's 1e-3 one accepted step may span most of the path.
      atol: absolute tolerance.
      max_steps: steps after which a sample that has not arrived is an error.
    """

    PROCESS: ClassVar[type[Flow]] = Flow
    rtol: float = 1e-4
    atol: float = 1e-6
    max_steps: int = 4096

    def evaluations(self, process):
        raise InputError(
            "Dopri5 chooses its steps as it goes, and can share nothing between them: take a "
            "solver of fixed steps, such as Euler"
        )

    def solve(self, process, denoise, x, state, condition, keys):
        import diffrax

        if jax.tree.leaves(state):  # A step that is rejected would leave its traces there.
            self.evaluations(process)
        grid = process.grid(1)

        def velocity(t: jax.Array, x: jax.Array, condition) -> jax.Array:
            one = jax.tree.map(lambda leaf: leaf[None], condition)
            output, _ = denoise.evaluate(x[None], t, one, state)
            return process.estimate(x[None], t, output).velocity[0]

        def solve(x: jax.Array, condition) -> jax.Array:
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(velocity),
                diffrax.Dopri5(),
                t0=grid[0],
                t1=grid[1],
                dt0=None,
                y0=x,
                args=condition,
                stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
                max_steps=self.max_steps,
                adjoint=diffrax.DirectAdjoint(),
            )
            return solution.ys[-1]

        # The error norm of a whole batch would tie a sample to its neighbours.
        return jax.vmap(solve)(x, condition), state
