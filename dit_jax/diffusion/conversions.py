"""Noise, x0, velocity and score are one quantity in four units; this is where they convert.

At time t a noised sample is x = alpha x0 + sigma noise, and its velocity is
v = alpha' x0 + sigma' noise, a prime being d/dt in the library's clock (t = 0 data, t = 1 noise).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Prediction = Literal["velocity", "x0", "noise", "score"]

# Divisors vanish at the ends of time; there the numerator vanishes too, or the caller stays away.
_TINY = 1e-12


class Coefficients(NamedTuple):
    """alpha, sigma and their time derivatives, broadcastable to the samples.

    The derivatives are None for a discrete process, which has no velocity.
    """

    alpha: jax.Array
    sigma: jax.Array
    d_alpha: jax.Array | None = None
    d_sigma: jax.Array | None = None


class Estimate(NamedTuple):
    """One prediction in all its units; the velocity is None for a discrete process."""

    x0: jax.Array
    noise: jax.Array
    score: jax.Array
    velocity: jax.Array | None


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    safe = jnp.where(jnp.abs(denominator) < _TINY, _TINY, denominator)
    return numerator / safe


def estimate(kind: Prediction, value: jax.Array, x: jax.Array, c: Coefficients) -> Estimate:
    """Converts a prediction of any kind at a noised sample into all kinds.

    Args:
      kind: what `value` is.
      value: the prediction, shaped as `x`.
      x: the noised sample.
      c: coefficients at its time, broadcastable to `x`.
    """
    if kind == "velocity":
        determinant = c.alpha * c.d_sigma - c.sigma * c.d_alpha
        x0 = _divide(c.d_sigma * x - c.sigma * value, determinant)
        noise = _divide(c.alpha * value - c.d_alpha * x, determinant)
    elif kind == "x0":
        x0, noise = value, _divide(x - c.alpha * value, c.sigma)
    else:
        noise = value if kind == "noise" else -c.sigma * value
        x0 = _divide(x - c.sigma * noise, c.alpha)
    score = value if kind == "score" else _divide(-noise, c.sigma)
    if kind == "velocity":
        velocity = value
    else:
        velocity = None if c.d_alpha is None else c.d_alpha * x0 + c.d_sigma * noise
    return Estimate(x0, noise, score, velocity)
