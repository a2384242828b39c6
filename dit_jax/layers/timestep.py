"""Diffusion time as a vector."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def timestep_features(t: jax.Array, dim: int = 256, max_period: float = 10000.0) -> jax.Array:
    """Embeds times [B] as [B, dim], float32: cosines then sines at max_period^(-i / (dim/2))."""
    half = dim // 2
    # The released code's order of operations: at t near 1000 another one is 6e-5 off.
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedder(nn.Module):
    """A two-layer MLP over sinusoidal features of the time (DiT, arXiv 2212.09748).

    Attributes:
      hidden: width of the result.
    """

    hidden: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """Maps times [B], in the model's own clock, to vectors [B, hidden], float32."""
        normal = nn.initializers.normal(0.02)
        x = nn.Dense(self.hidden, kernel_init=normal, name="fc1")(timestep_features(t))
        return nn.Dense(self.hidden, kernel_init=normal, name="fc2")(nn.silu(x))
