"""The decoder of representation autoencoders: a ViT from latents to pixels (arXiv 2510.11690)."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.latents.rae.encoders.vit import Perceptron, VisionEncoderBlock, layer_norm
from dit_jax.layers.attention import SelfAttention
from dit_jax.layers.linear import linear
from dit_jax.layers.patch import unpatchify
from dit_jax.layers.position import sincos_2d
from dit_jax.layers.stack import Remat, Stack
from dit_jax.layers.taps import COLLECTION

# Under this name the last layer's input [B, N, hidden] can be tapped (`layers.taps`).
FEATURES = "features"


class ViTDecoder(nn.Module):
    """Maps a token of the encoder to a patch of pixels; as wide as MAE's, "ViT-XL", by default.

    Its positions are fixed sines, so that any grid of tokens can be decoded. A learned CLS token
    takes part in the attention, and is not returned.

    Attributes:
      patch: side of a square patch, in pixels.
      hidden: width of the tokens; a multiple of 4 and of `heads`.
      depth: number of blocks.
      heads: number of attention heads.
      ffn: channel mixer of the blocks.
      channels: channels of the images.
      eps: of the norms.
      remat: what the backward pass recomputes.
      dtype: compute dtype; parameters, norms' statistics and results are float32.
    """

    patch: int = 16
    hidden: int = 1152
    depth: int = 28
    heads: int = 16
    ffn: nn.Module = dataclasses.field(default_factory=lambda: Perceptron(4096, initial="torch"))
    channels: int = 3
    eps: float = 1e-12
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Decodes tokens as the encoder gave them.

        Args:
          latents: [B, h, w, C], float, not normalised.

        Returns:
          Images [B, h * patch, w * patch, channels], float32, normalised as the encoder's are.

        Raises:
          InputError: the heads do not divide the width, or 4 does not.
        """
        if self.hidden % self.heads or self.hidden % 4:
            raise InputError(
                f"a width of {self.hidden} must be a multiple of 4 and of the {self.heads} heads"
            )
        batch, *grid, channels = latents.shape
        tokens = latents.reshape(batch, -1, channels).astype(self.dtype)
        tokens = linear(self.hidden, tokens, "token_embed", init="torch")
        tokens = tokens + jnp.asarray(sincos_2d(tuple(grid), self.hidden), tokens.dtype)
        cls = self.param("cls", nn.initializers.zeros, (1, self.hidden))
        cls = jnp.broadcast_to(cls.astype(tokens.dtype), (batch, *cls.shape))
        tokens = jnp.concatenate([cls, tokens], axis=1)
        stack = Stack(self.block(), self.depth, self.remat, name="blocks")
        tokens = stack(tokens, tuple(grid))[0][:, 1:]
        tokens = layer_norm(tokens, "norm", self.eps)
        self.sow(COLLECTION, FEATURES, tokens)
        pixels = linear(self.patch**2 * self.channels, tokens, "pixels", init="torch")
        return unpatchify(pixels, tuple(grid), self.patch).astype(jnp.float32)

    def block(self) -> VisionEncoderBlock:
        """Returns one block, which takes one layer of `params["blocks"]["layers"]`."""
        attention = SelfAttention(self.heads, initial="torch", parent=None)
        ffn = self.ffn.clone(parent=None, name=None)
        return VisionEncoderBlock(attention, ffn, self.eps, parent=None)
