"""Processes, solvers and guidance; a model is known here only as a function."""

from dit_jax.diffusion.denoiser import CachingDenoiser, Denoiser, StatefulDenoiser, cache_first_half
from dit_jax.diffusion.flow import Flow
from dit_jax.diffusion.gaussian import Gaussian
from dit_jax.diffusion.guidance import Autoguidance, ClassifierFree, Guidance
from dit_jax.diffusion.interpolants import GVP, VP, Interpolant, Linear
from dit_jax.diffusion.process import Process
from dit_jax.diffusion.refresh_steps import (
    check_budget,
    choose_steps,
    mean_similarity,
    token_similarity,
)
from dit_jax.diffusion.sampling import Sampling, initial_noise, sample_keys, sample_loop
from dit_jax.diffusion.sharing import Sharing, record
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
from dit_jax.diffusion.time import (
    LogitNormal,
    TimeSampler,
    TruncatedLogitNormal,
    Uniform,
    dimension_shift,
)

__all__ = [
    "DDIM",
    "DDPM",
    "GVP",
    "VP",
    "Autoguidance",
    "CachingDenoiser",
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
    "Sharing",
    "Solver",
    "StatefulDenoiser",
    "TimeSampler",
    "TruncatedLogitNormal",
    "Uniform",
    "cache_first_half",
    "check_budget",
    "choose_steps",
    "dimension_shift",
    "initial_noise",
    "mean_similarity",
    "record",
    "sample_keys",
    "sample_loop",
    "token_similarity",
]
