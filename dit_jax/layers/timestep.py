"""Diffusion time as a vector."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sinusoid:
    """Sinusoidal features of the time: cosines, then sines.

    Attributes:
      dim: number of features, even.
      max_period: longest period over 2 pi; frequencies fall from 1 towards its inverse.
      endpoint: let the last frequency be 1 / max_period, as diffusers does; DiT stops one short.
    """

    dim: int = 256
    max_period: float = 10000.0
    endpoint: bool = False

    def __call__(self, t: jax.Array) -> jax.Array:
        """Maps times [B] to features [B, dim], float32."""
        half = self.dim // 2
        # The released code's order of operations: at t near 1000 another one is 6e-5 off.
        exponents = -math.log(self.max_period) * jnp.arange(half, dtype=jnp.float32)
        frequencies = jnp.exp(exponents / (half - self.endpoint))
        angles = t.astype(jnp.float32)[:, None] * frequencies
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class FourierFeatures(nn.Module):
    """Random Fourier features of the time: sines, then cosines (arXiv 2006.10739).

    Their frequencies are drawn once and never trained, and yet are parameters: a model means
    nothing with others.

    Attributes:
      frequencies: number of frequencies, half that of the features.
    """

    frequencies: int = 256

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """Maps times [B] in [0, 1] to features [B, 2 * frequencies], float32."""
        drawn = self.param("frequencies", nn.initializers.normal(1.0), (self.frequencies,))
        drawn = jax.lax.stop_gradient(drawn)
        angles = 2 * jnp.pi * t.astype(jnp.float32)[:, None] * drawn
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimestepEmbedder(nn.Module):
    """A two-layer MLP over features of the time (DiT, arXiv 2212.09748).

    Attributes:
      hidden: width of the result.
      features: features of the time.
    """

    hidden: int
    features: Sinusoid | FourierFeatures

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """Maps times [B], in the model's own clock, to vectors [B, hidden], float32."""
        normal = nn.initializers.normal(0.02)
        x = nn.Dense(self.hidden, kernel_init=normal, name="fc1")(self.features(t))
        return nn.Dense(self.hidden, kernel_init=normal, name="fc2")(nn.silu(x))
