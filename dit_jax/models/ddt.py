"""DDT: Decoupled Diffusion Transformer (Wang et al., arXiv 2504.05741)."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.attention import Full, TokenMixer
from dit_jax.layers.attention import SelfAttention, unbound
from dit_jax.layers.block import Block
from dit_jax.layers.context import Context
from dit_jax.layers.label import add_label, null_label
from dit_jax.layers.linear import linear
from dit_jax.layers.mlp import SwiGLU
from dit_jax.layers.modulation import AdaLN
from dit_jax.layers.norm import RMSNorm
from dit_jax.layers.patch import patch_grid, patchify
from dit_jax.layers.rope import AxialRope
from dit_jax.layers.stack import Remat, Stack
from dit_jax.layers.timestep import Sinusoid, TimestepEmbedder
from dit_jax.models.decoupled import VelocityDecoder
from dit_jax.models.output import Output

# Positions run from 0 to 16 on any grid, so that another resolution is an interpolation.
_EXTENT = 16.0


class DDT(nn.Module):
    """A condition encoder, and a velocity decoder that its tokens modulate one by one.

    Attributes:
      patch: side of a square patch, in pixels of the (latent) image.
      hidden: width of the tokens.
      encoder_depth: blocks of the condition encoder.
      decoder_depth: blocks of the velocity decoder.
      heads: number of attention heads; each a multiple of 4 wide.
      num_classes: number of classes; 0 for an unconditional model. The null label is num_classes.
      label_dropout: probability of the null label in training.
      attention: token mixer of the blocks.
      remat: what the backward pass recomputes.
      dtype: compute dtype; parameters are float32.
    """

    patch: int = 2
    hidden: int = 1152
    encoder_depth: int = 22
    decoder_depth: int = 6
    heads: int = 16
    num_classes: int = 1000
    label_dropout: float = 0.1
    attention: TokenMixer = dataclasses.field(default_factory=Full)
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def setup(self):
        adaln = AdaLN(2, activate=False, parent=None)
        sizes = self.patch, self.hidden, self.block(), self.decoder_depth
        self.velocity_decoder = VelocityDecoder(*sizes, self.remat, "layer", adaln)
        nn.share_scope(self, self.velocity_decoder)

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: dict[str, jax.Array], train: bool = False
    ) -> Output:
        """Predicts for noised images `x`.

        Args:
          x: [B, H, W, C], float; H and W multiples of `patch`.
          t: [B] in [0, 1], in the clock the model was trained with (its process' `model_time`).
          condition: `label` [B] int32 in [0, num_classes]; empty for an unconditional model.
          train: drop labels at random, drawing from the `dropout` key.

        Returns:
          `Output` with prediction [B, H, W, C], float32.

        Raises:
          InputError: the image does not divide into patches, or the label is missing.
        """
        return self.decode(x, self.encode(x, t, condition, train), train)

    @nn.compact
    def encode(
        self, x: jax.Array, t: jax.Array, condition: dict[str, jax.Array], train: bool = False
    ) -> jax.Array:
        """Maps what the whole model takes to the decoder's condition [B, N, D], compute dtype.

        The time is in it: the decoder sees no other, be the condition an earlier step's.
        """
        dtype = jnp.dtype(self.dtype)
        grid = patch_grid(x.shape, self.patch)
        time = TimestepEmbedder(self.hidden, Sinusoid(max_period=10.0), name="time_embed")(t)
        dropout = self.label_dropout
        c, conditional = add_label(time, condition, self.num_classes, dropout, train)
        time = time.astype(dtype)

        context = Context(nn.silu(c).astype(dtype), t, time, conditional, grid, train)
        tokens = linear(self.hidden, patchify(x, self.patch).astype(dtype), "encoder_embed")
        encoder = Stack(self.block(), self.encoder_depth, self.remat, name="encoder")
        tokens, _ = encoder(tokens, context)
        return nn.silu(time[:, None] + tokens)

    def decode(self, x: jax.Array, s: jax.Array, train: bool = False) -> Output:
        """Maps images [B, H, W, C] and their condition [B, N, D] to what the whole model returns.

        Args:
          x: noised images.
          s: what `encode` made of them, or of those of an earlier step.
          train: whether this is a training pass.
        """
        return self.velocity_decoder(x, s, train)

    def block(self) -> Block:
        """Returns one block of either stack, which takes one layer of its parameters."""
        attention = SelfAttention(
            self.heads,
            unbound(self.attention),
            qk_norm=RMSNorm(parent=None),
            rope=AxialRope(interleaved=True, extent=_EXTENT),
            bias=False,
            initial="torch",
            parent=None,
        )
        ffn = SwiGLU(bias=False, initial="torch", parent=None)
        adaln = AdaLN(6, activate=False, initial="torch", parent=None)
        return Block(attention, ffn, "rms", adaln, parent=None)

    def null_condition(self, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the condition that stands for "no condition", of the same shapes."""
        return null_label(condition, self.num_classes)

    def frozen_parameters(self, shape: tuple[int, int, int]) -> int:
        """Sizes of fixed tables, which the papers count: none."""
        del shape
        return 0
