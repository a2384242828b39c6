"""Adaptive layer norm: the condition shifts, scales and gates the tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.layers.linear import Init, linear
from dit_jax.parallel.sharding import constrain


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns x * (1 + scale) + shift for tokens [B, N, D] and vectors that broadcast to them."""
    return x * (1 + scale) + shift


class AdaLN(nn.Module):
    """Modulation vectors from the condition; adaLN-Zero, by default (DiT, arXiv 2212.09748).

    Attributes:
      vectors: how many vectors of the condition's width to produce.
      activate: apply SiLU to the condition first.
      initial: zero, so that a block starts as the identity, or another.
    """

    vectors: int
    activate: bool = True
    initial: Init = "zero"

    @nn.compact
    def __call__(self, c: jax.Array) -> list[jax.Array]:
        """Maps a condition [B, D] to `vectors` arrays [B, 1, D], or one a token [B, N, D] alike."""
        c = c[:, None] if c.ndim == 2 else c
        c = nn.silu(c) if self.activate else c
        # Else the compiler may gather the condition of all samples rather than a layer.
        c = constrain(c, "batch", "tokens" if c.shape[1] > 1 else None, None)
        modulation = linear(self.vectors * c.shape[-1], c, "linear", init=self.initial)
        return jnp.split(modulation, self.vectors, axis=-1)
