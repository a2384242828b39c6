"""Multi-head self-attention: the projections around a token mixer."""

import flax.linen as nn
import jax

from dit_jax.attention.mixer import TokenMixer
from dit_jax.layers.linear import linear


class SelfAttention(nn.Module):
    """Projects tokens to queries, keys and values, mixes them, and projects back.

    Attributes:
      heads: number of heads; must divide the width.
      mixer: how queries meet keys.
    """

    heads: int
    mixer: TokenMixer

    @nn.compact
    def __call__(self, x: jax.Array, grid: tuple[int, ...]) -> jax.Array:
        """Maps tokens [B, N, D] on `grid` to tokens [B, N, D]."""
        width = x.shape[-1]
        qkv = linear((3, self.heads, width // self.heads), x, "qkv")
        mixed = self.mixer(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], grid)
        return linear(width, mixed, "out", axis=(-2, -1))
