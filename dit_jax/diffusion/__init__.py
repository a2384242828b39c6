"""Processes, solvers and guidance; a model is known here only as a function."""

from dit_jax.diffusion.flow import Flow
from dit_jax.diffusion.gaussian import Gaussian
from dit_jax.diffusion.guidance import Autoguidance, ClassifierFree, Denoiser, Guidance
from dit_jax.diffusion.interpolants import GVP, VP, Interpolant, Linear
from dit_jax.diffusion.process import Process
from dit_jax.diffusion.sampling import Sampling, sample_keys, sample_loop
from dit_jax.diffusion.solvers import (
    DDIM,
    DDPM,
    Dopri5,
    Euler,
    EulerMaruyama,
    Heun,
    HeunSDE,
    Solver,
)
from dit_jax.diffusion.time import LogitNormal, TimeSampler, Uniform

__all__ = [
    "DDIM",
    "DDPM",
    "GVP",
    "VP",
    "Autoguidance",
    "ClassifierFree",
    "Denoiser",
    "Dopri5",
    "Euler",
    "EulerMaruyama",
    "Flow",
    "Gaussian",
    "Guidance",
    "Heun",
    "HeunSDE",
    "Interpolant",
    "Linear",
    "LogitNormal",
    "Process",
    "Sampling",
    "Solver",
    "TimeSampler",
    "Uniform",
    "sample_keys",
    "sample_loop",
]
