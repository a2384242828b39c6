"""The block that the backbones stack, and the layer that ends them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.layers.context import Context
from dit_jax.layers.linear import linear
from dit_jax.layers.modulation import AdaLN, modulate
from dit_jax.layers.norm import Norm, norm


class Block(nn.Module):
    """Attention and a channel mixer, each under a modulated norm and a gate.

    Attributes:
      attention: token mixing, a module mapping (tokens, grid) to tokens.
      ffn: channel mixing, a module mapping (tokens, context) to (tokens, aux).
      norm: kind of norm.
      adaln: six modulation vectors from the condition.
    """

    attention: nn.Module
    ffn: nn.Module
    norm: Norm = "layer"
    adaln: nn.Module = dataclasses.field(default_factory=lambda: AdaLN(6, parent=None))

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        """Maps tokens [B, N, D] to tokens [B, N, D] and the channel mixer's aux."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(context.vector)
        y = modulate(norm(self.norm, x, "norm1"), shift1, scale1)
        x = x + gate1 * self.attention(y, context.grid)
        y = modulate(norm(self.norm, x, "norm2"), shift2, scale2)
        mixed, aux = self.ffn(y, context)
        return x + gate2 * mixed, aux


class Alternate(nn.Module):
    """Channel mixers that take turns: the first block has the first, and so on, and again.

    Attributes:
      mixers: channel mixers.
    """

    mixers: tuple[nn.Module, ...]

    def __post_init__(self):
        super().__post_init__()
        if not self.mixers:
            raise InputError("Alternate needs at least one channel mixer")


class BlockGroup(nn.Module):
    """Blocks of several kinds, one after another: what is stacked where kinds take turns.

    Attributes:
      blocks: modules mapping (tokens, context) to (tokens, aux).
    """

    blocks: tuple[nn.Module, ...]

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        """Maps tokens [B, N, D] to tokens [B, N, D] and aux.

        aux has the block as axis 0, of those that have one; they must have the same.
        """
        found = []
        for block in self.blocks:
            x, aux = block(x, context)
            found += [aux] if aux else []
        if len({jax.tree.structure(aux) for aux in found}) > 1:
            raise InputError(
                "mixtures of experts that take turns must be alike: one kind of router and as many "
                "experts"
            )
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *found) if found else {}


class FinalLayer(nn.Module):
    """A modulated norm and a zero-initialised linear layer.

    Attributes:
      features: output width per token.
      norm: kind of norm.
      adaln: two modulation vectors from the condition.
    """

    features: int
    norm: Norm = "layer"
    adaln: nn.Module = dataclasses.field(default_factory=lambda: AdaLN(2, parent=None))

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D] under condition [B, D] or [B, N, D] to [B, N, features]."""
        shift, scale = self.adaln(c)
        x = modulate(norm(self.norm, x, "norm"), shift, scale)
        return linear(self.features, x, "linear", init="zero")
