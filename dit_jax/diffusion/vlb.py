"""Terms of the variational bound of a Gaussian diffusion (arXiv 2006.11239, section 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np


def normal_kl(
    mean1: jax.Array, log_variance1: jax.Array, mean2: jax.Array, log_variance2: jax.Array
) -> jax.Array:
    """KL divergence of two diagonal normals, element by element, in nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + jnp.exp(log_variance1 - log_variance2)
        + jnp.square(mean1 - mean2) * jnp.exp(-log_variance2)
    )


def _normal_cdf(x: jax.Array) -> jax.Array:
    # ADM's tanh approximation, kept because released models were trained with it.
    return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def discretized_log_likelihood(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Log likelihood of 8-bit values `x` in [-1, 1] under a normal, element by element, in nats.

    Each value stands for a bin of width 2/255; the outermost bins are open.
    """
    inverse = jnp.exp(-log_scale)
    upper = _normal_cdf(inverse * (x - mean + 1 / 255))
    lower = _normal_cdf(inverse * (x - mean - 1 / 255))
    probability = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(probability, 1e-12))
