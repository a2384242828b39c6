"""Norms of tokens, statistics in float32."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

Norm = Literal["layer", "rms"]


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Normalises the last axis to zero mean and unit variance; nothing is learned."""
    y = x.astype(jnp.float32)
    y = y - y.mean(axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + eps)
    return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Divides the last axis by its root mean square, and scales it (arXiv 1910.07467)."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D] in the dtype of `x`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * scale.astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm with a learned scale and bias (arXiv 1607.06450)."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D] in the dtype of `x`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, self.eps) * scale.astype(x.dtype) + bias.astype(x.dtype)


def norm(kind: Norm, x: jax.Array, name: str) -> jax.Array:
    """Applies a norm of the calling module: LayerNorm learns nothing, RMSNorm a scale."""
    return layer_norm(x) if kind == "layer" else RMSNorm(name=name)(x)
