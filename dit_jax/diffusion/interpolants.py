"""Paths from data to noise: alpha(t), sigma(t) and their derivatives (SiT, arXiv 2401.08740).

All in the library's clock, t = 0 data and t = 1 noise; SiT's own runs the other way.
"""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from dit_jax.diffusion.conversions import Coefficients


@dataclasses.dataclass(frozen=True)
class Interpolant(abc.ABC):
    """A path x_t = alpha(t) x0 + sigma(t) noise."""

    @abc.abstractmethod
    def __call__(self, t: jax.Array) -> Coefficients:
        """Returns the coefficients at times `t` of any shape, float32."""

    @abc.abstractmethod
    def drift_diffusion(self, t: jax.Array) -> jax.Array:
        """The diffusion w(t) at which the SDE is the time reversal of the forward process.

        w = sigma sigma' - (alpha'/alpha) sigma^2 (SiT, eq. 7 and its "SBDM" choice).
        """


@dataclasses.dataclass(frozen=True)
class Linear(Interpolant):
    """alpha = 1 - t, sigma = t: the straight path of rectified flow."""

    def __call__(self, t):
        return Coefficients(1 - t, t, -jnp.ones_like(t), jnp.ones_like(t))

    def drift_diffusion(self, t):
        return t / (1 - t)


@dataclasses.dataclass(frozen=True)
class GVP(Interpolant):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): the generalised variance-preserving path."""

    def __call__(self, t):
        half_pi = jnp.pi / 2
        cos, sin = jnp.cos(half_pi * t), jnp.sin(half_pi * t)
        return Coefficients(cos, sin, -half_pi * sin, half_pi * cos)

    def drift_diffusion(self, t):
        return jnp.pi / 2 * jnp.tan(jnp.pi / 2 * t)


@dataclasses.dataclass(frozen=True)
class VP(Interpolant):
    """The variance-preserving diffusion of Song et al. (arXiv 2011.13456), beta from 0.1 to 20."""

    BETA_MIN: ClassVar[float] = 0.1
    BETA_MAX: ClassVar[float] = 20.0

    def _beta(self, t: jax.Array) -> jax.Array:
        return self.BETA_MIN + t * (self.BETA_MAX - self.BETA_MIN)

    def __call__(self, t):
        log_alpha = -(t**2) * (self.BETA_MAX - self.BETA_MIN) / 4 - t * self.BETA_MIN / 2
        d_log_alpha = -self._beta(t) / 2
        alpha = jnp.exp(log_alpha)
        sigma = jnp.sqrt(-jnp.expm1(2 * log_alpha))
        # sigma' is infinite at t = 0, where sigma is 0: the process stays away from there.
        d_sigma = -jnp.exp(2 * log_alpha) * d_log_alpha / jnp.maximum(sigma, 1e-12)
        return Coefficients(alpha, sigma, alpha * d_log_alpha, d_sigma)

    def drift_diffusion(self, t):
        return self._beta(t) / 2
