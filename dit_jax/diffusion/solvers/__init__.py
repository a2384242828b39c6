"""Solvers: from noise to data with a denoiser."""

from dit_jax.diffusion.solvers.ancestral import DDIM, DDPM
from dit_jax.diffusion.solvers.ode import Dopri5, Euler, Heun
from dit_jax.diffusion.solvers.sde import EulerMaruyama, HeunSDE
from dit_jax.diffusion.solvers.solver import Solver

__all__ = ["DDIM", "DDPM", "Dopri5", "Euler", "EulerMaruyama", "Heun", "HeunSDE", "Solver"]
