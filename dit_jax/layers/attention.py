"""Multi-head attention: the projections around a token mixer, or around two kinds of tokens."""

import dataclasses

import flax.linen as nn
import jax

from dit_jax.attention import Full, TokenMixer
from dit_jax.kernels.softmax_attention import softmax_attention
from dit_jax.layers.linear import Init, linear
from dit_jax.layers.rope import AxialRope
from dit_jax.layers.taps import COLLECTION, MIXED
from dit_jax.parallel.sharding import constrain


def unbound(mixer: TokenMixer) -> TokenMixer:
    """Returns a mixer that belongs to no module yet, so that the one that gets it owns it."""
    return mixer.clone(parent=None, name=None) if isinstance(mixer, nn.Module) else mixer


class SelfAttention(nn.Module):
    """Projects tokens to queries, keys and values, mixes them, and projects back.

    What comes out of the mixer can be tapped (`layers.taps`).

    Attributes:
      heads: number of heads; must divide the width.
      mixer: how queries meet keys; its parameters, if it has any, are at `mixer`.
      qk_norm: norm of queries and keys, a head at a time and before rotation.
      rope: rotary position embedding of queries and keys.
      bias: biases of queries, keys and values.
      initial: initialisation of the projections.
    """

    heads: int
    mixer: TokenMixer = dataclasses.field(default_factory=Full)
    qk_norm: nn.Module | None = None
    rope: AxialRope | None = None
    bias: bool = True
    initial: Init = "xavier"

    @nn.compact
    def __call__(self, x: jax.Array, grid: tuple[int, ...]) -> jax.Array:
        """Maps tokens [B, N, D] on `grid` to tokens [B, N, D]."""
        width = x.shape[-1]
        shape = (3, self.heads, width // self.heads)
        qkv = linear(shape, x, "qkv", bias=self.bias, init=self.initial)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.qk_norm is not None:
            q = self.qk_norm.clone(parent=self, name="q_norm")(q)
            k = self.qk_norm.clone(parent=self, name="k_norm")(k)
        if self.rope is not None:
            q, k = self.rope(q, grid), self.rope(k, grid)
        # Devices that share tokens share heads for the while, so that each mixer sees all tokens.
        q, k, v = (constrain(x, "batch", None, "mixed_heads", None) for x in (q, k, v))
        mixed = constrain(self.mixer(q, k, v, grid), "batch", "tokens", "heads", None)
        self.sow(COLLECTION, MIXED, mixed)
        return linear(width, mixed, "out", axis=(-2, -1), init=self.initial)


class CrossAttention(nn.Module):
    """Tokens read from other tokens, which should be few: all weights lie in memory.

    Attributes:
      heads: number of heads; must divide the width.
      qk_norm: norm of queries and keys, a head at a time.
      initial: initialisation of the last projection.
    """

    heads: int
    qk_norm: nn.Module | None = None
    initial: Init = "xavier"

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D], which ask, and `source` [B, M, D], to tokens [B, N, D]."""
        width = x.shape[-1]
        shape = (self.heads, width // self.heads)
        q = linear(shape, x, "q")
        kv = linear((2, *shape), source, "kv")
        k, v = kv[:, :, 0], kv[:, :, 1]
        if self.qk_norm is not None:
            q = self.qk_norm.clone(parent=self, name="q_norm")(q)
            k = self.qk_norm.clone(parent=self, name="k_norm")(k)
        mixed = softmax_attention(q, k, v, "xla")
        return linear(width, mixed, "out", axis=(-2, -1), init=self.initial)
