"""Adaptive layer norm: the condition shifts, scales and gates the tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.layers.linear import linear


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Normalises the last axis without learned scale or bias; statistics in float32."""
    y = x.astype(jnp.float32)
    y = y - y.mean(axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + eps)
    return y.astype(x.dtype)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns x * (1 + scale) + shift for tokens [B, N, D] and vectors [B, D]."""
    return x * (1 + scale[:, None]) + shift[:, None]


class AdaLNZero(nn.Module):
    """Modulation vectors from the condition, zero at initialisation (DiT, arXiv 2212.09748).

    Attributes:
      vectors: how many vectors of the condition's width to produce.
    """

    vectors: int

    @nn.compact
    def __call__(self, c: jax.Array) -> list[jax.Array]:
        """Maps the condition [B, D] to `vectors` arrays [B, D]."""
        modulation = linear(self.vectors * c.shape[-1], nn.silu(c), "linear", zero=True)
        return jnp.split(modulation, self.vectors, axis=-1)
