"""Solvers of the probability-flow ODE dx/dt = velocity."""

import abc
import dataclasses
from typing import ClassVar

import jax

from dit_jax.diffusion.flow import Flow
from dit_jax.diffusion.solvers.solver import Solver


@dataclasses.dataclass(frozen=True)
class _FixedGrid(Solver):
    """A scan over a fixed grid of times.

    Attributes:
      steps: number of steps; SiT's `num_steps` counts grid points and is one more.
    """

    PROCESS: ClassVar[type[Flow]] = Flow
    steps: int = 50

    @abc.abstractmethod
    def step(self, velocity, x: jax.Array, t: jax.Array, dt: jax.Array) -> jax.Array:
        """Moves `x` from t to t + dt (dt < 0), given velocity(x, t)."""

    def __call__(self, process, denoise, x, condition, keys):
        self.check(process)
        grid = process.grid(self.steps)

        def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
            return process.estimate(x, t, denoise(x, t, condition)).velocity

        def body(x: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            t, after = ends
            return self.step(velocity, x, t, after - t), None

        return jax.lax.scan(body, x, (grid[:-1], grid[1:]))[0]


@dataclasses.dataclass(frozen=True)
class Euler(_FixedGrid):
    """First order: one evaluation a step."""

    def step(self, velocity, x, t, dt):
        return x + dt * velocity(x, t)


@dataclasses.dataclass(frozen=True)
class Heun(_FixedGrid):
    """Second order: two evaluations a step."""

    def step(self, velocity, x, t, dt):
        first = velocity(x, t)
        second = velocity(x + dt * first, t + dt)
        return x + dt / 2 * (first + second)


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

    def __call__(self, process, denoise, x, condition, keys):
        import diffrax

        self.check(process)
        grid = process.grid(1)

        def velocity(t: jax.Array, x: jax.Array, condition) -> jax.Array:
            one = jax.tree.map(lambda leaf: leaf[None], condition)
            output = denoise(x[None], t, one)
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
        return jax.vmap(solve)(x, condition)
