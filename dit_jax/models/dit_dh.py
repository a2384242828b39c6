"""DiT-DH: a DiT with a wide, shallow head, for wide latents (RAE; Zheng et al., arXiv 2510.11690).

A plain DiT must be as wide as the tokens it denoises. Here a body of any width makes a condition
for every token, and a few wide blocks denoise under it, as in DDT (arXiv 2504.05741).
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.attention import Full, TokenMixer
from dit_jax.errors import InputError
from dit_jax.layers.attention import SelfAttention, unbound
from dit_jax.layers.block import Block
from dit_jax.layers.context import Context
from dit_jax.layers.label import add_label, null_label
from dit_jax.layers.linear import linear
from dit_jax.layers.mlp import SwiGLU
from dit_jax.layers.modulation import AdaLN
from dit_jax.layers.patch import patch_grid, patchify
from dit_jax.layers.position import sincos_2d
from dit_jax.layers.rope import AxialRope
from dit_jax.layers.stack import Remat, Stack
from dit_jax.layers.timestep import FourierFeatures, TimestepEmbedder
from dit_jax.models.decoupled import VelocityDecoder
from dit_jax.models.output import Output


class DiTDH(nn.Module):
    """A body that conditions each token, and a wide head that denoises it.

    Attributes:
      patch: side of a square patch, in pixels of the latent image.
      hidden: width of the body's tokens; a multiple of 4 and of `heads`.
      depth: blocks of the body.
      heads: attention heads of the body.
      wide_hidden: width of the head's tokens, at least that of what is denoised.
      wide_depth: blocks of the head.
      wide_heads: attention heads of the head.
      num_classes: number of classes; 0 for an unconditional model. The null label is num_classes.
      label_dropout: probability of the null label in training.
      attention: token mixer of the blocks.
      remat: what the backward pass recomputes.
      dtype: compute dtype; parameters are float32.
    """

    patch: int = 1
    hidden: int = 1152
    depth: int = 28
    heads: int = 16
    wide_hidden: int = 2048
    wide_depth: int = 2
    wide_heads: int = 16
    num_classes: int = 1000
    label_dropout: float = 0.1
    attention: TokenMixer = dataclasses.field(default_factory=Full)
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def setup(self):
        for width, heads in ((self.hidden, self.heads), (self.wide_hidden, self.wide_heads)):
            if width % (4 * heads):
                raise InputError(f"a width of {width} does not divide into {heads} heads of 4 k")
        sizes = self.patch, self.wide_hidden, self.block(self.wide_heads), self.wide_depth
        self.head = VelocityDecoder(*sizes, self.remat, "rms", AdaLN(2, parent=None))
        nn.share_scope(self, self.head)

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: dict[str, jax.Array], train: bool = False
    ) -> Output:
        """Predicts for noised latents `x`.

        Args:
          x: [B, H, W, C], float; H and W multiples of `patch`.
          t: [B] in [0, 1].
          condition: `label` [B] int32 in [0, num_classes]; empty for an unconditional model.
          train: drop labels at random, drawing from the `dropout` key.

        Returns:
          `Output` with prediction [B, H, W, C], float32.

        Raises:
          InputError: the latents do not divide into patches, the heads do not divide a width, or
            the label is missing.
        """
        return self.decode(x, self.encode(x, t, condition, train), train)

    @nn.compact
    def encode(
        self, x: jax.Array, t: jax.Array, condition: dict[str, jax.Array], train: bool = False
    ) -> jax.Array:
        """Maps what the whole model takes to the head's condition [B, N, wide_hidden]."""
        dtype = jnp.dtype(self.dtype)
        grid = patch_grid(x.shape, self.patch)
        time = TimestepEmbedder(self.hidden, FourierFeatures(parent=None), name="time_embed")(t)
        dropout = self.label_dropout
        c, conditional = add_label(time, condition, self.num_classes, dropout, train)
        time = time.astype(dtype)

        # SiLU here and in every block's AdaLN again, as the released models have it.
        context = Context(nn.silu(c).astype(dtype), t, time, conditional, grid, train)
        tokens = linear(self.hidden, patchify(x, self.patch).astype(dtype), "encoder_embed")
        tokens = tokens + jnp.asarray(sincos_2d(grid, self.hidden), dtype)
        body = Stack(self.block(self.heads), self.depth, self.remat, name="encoder")
        tokens, _ = body(tokens, context)
        s = nn.silu(time[:, None] + tokens)
        if self.wide_hidden == self.hidden:
            return s
        return linear(self.wide_hidden, s, "condition", init="torch")

    def decode(self, x: jax.Array, s: jax.Array, train: bool = False) -> Output:
        """Maps latents and their condition, or that of an earlier step, to the prediction."""
        return self.head(x, s, train)

    def block(self, heads: int) -> Block:
        """Returns one block of a stack, which takes one layer of its parameters."""
        attention = SelfAttention(
            heads, unbound(self.attention), rope=AxialRope(), initial="torch", parent=None
        )
        return Block(attention, SwiGLU(initial="torch", parent=None), "rms", parent=None)

    def null_condition(self, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the condition that stands for "no condition", of the same shapes."""
        return null_label(condition, self.num_classes)

    def frozen_parameters(self, shape: tuple[int, int, int]) -> int:
        """Size of the fixed position table for samples [h, w, c], which the papers count."""
        rows, columns = patch_grid(shape, self.patch)
        return rows * columns * self.hidden
