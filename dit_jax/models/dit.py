"""DiT: Scalable Diffusion Models with Transformers (Peebles & Xie, arXiv 2212.09748)."""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.attention import Full, TokenMixer
from dit_jax.errors import InputError
from dit_jax.layers.attention import SelfAttention
from dit_jax.layers.context import Context
from dit_jax.layers.label import LabelEmbedder
from dit_jax.layers.linear import linear
from dit_jax.layers.mlp import Mlp
from dit_jax.layers.modulation import AdaLNZero, layer_norm, modulate
from dit_jax.layers.patch import patch_grid, patchify, unpatchify
from dit_jax.layers.position import sincos_2d
from dit_jax.layers.stack import Remat, Stack
from dit_jax.layers.timestep import Sinusoid, TimestepEmbedder
from dit_jax.models.output import Output


class DiTBlock(nn.Module):
    """Attention and MLP, each under adaLN-Zero.

    Attributes:
      heads: number of attention heads.
      attention: token mixer.
      ffn: channel mixer, a module mapping (tokens, context) to (tokens, aux).
    """

    heads: int
    attention: TokenMixer
    ffn: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        """Maps tokens [B, N, D] to tokens [B, N, D] and the channel mixer's aux."""
        shift1, scale1, gate1, shift2, scale2, gate2 = AdaLNZero(6, name="adaln")(context.vector)
        attention = SelfAttention(self.heads, self.attention, name="attention")
        x = x + gate1[:, None] * attention(modulate(layer_norm(x), shift1, scale1), context.grid)
        mixed, aux = self.ffn(modulate(layer_norm(x), shift2, scale2), context)
        return x + gate2[:, None] * mixed, aux


class FinalLayer(nn.Module):
    """Modulated norm and a zero-initialised linear layer.

    Attributes:
      features: output width per token.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D] under condition [B, D] to [B, N, features]."""
        shift, scale = AdaLNZero(2, name="adaln")(c)
        return linear(self.features, modulate(layer_norm(x), shift, scale), "linear", zero=True)


class DiT(nn.Module):
    """A Diffusion Transformer with adaLN-Zero conditioning on time and class.

    Attributes:
      patch: side of a square patch, in pixels of the (latent) image.
      hidden: width of the tokens; a multiple of 4 and of `heads`.
      depth: number of blocks.
      heads: number of attention heads.
      num_classes: number of classes; 0 for an unconditional model. The null label is num_classes.
      label_dropout: probability of the null label in training.
      learn_sigma: predict a variance beside the noise, as twice the channels.
      time_features: what the time is embedded by.
      attention: token mixer of the blocks.
      ffn: channel mixer of the blocks.
      remat: what the backward pass recomputes; "dots", all but the weight matmuls, is the fastest
        where memory bandwidth binds.
      dtype: compute dtype; parameters are float32.
    """

    patch: int = 2
    hidden: int = 1152
    depth: int = 28
    heads: int = 16
    num_classes: int = 1000
    label_dropout: float = 0.1
    learn_sigma: bool = True
    time_features: Sinusoid = dataclasses.field(default_factory=Sinusoid)
    attention: TokenMixer = dataclasses.field(default_factory=Full)
    ffn: nn.Module = dataclasses.field(default_factory=Mlp)
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, condition: dict[str, jax.Array], train: bool = False
    ) -> Output:
        """Predicts for noised images `x`.

        Args:
          x: [B, H, W, C], float; H and W multiples of `patch`.
          t: [B], in the clock the model was trained with (its process' `model_time`).
          condition: `label` [B] int32 in [0, num_classes]; empty for an unconditional model.
          train: drop labels at random, drawing from the `dropout` key.

        Returns:
          `Output` with prediction [B, H, W, C] (2C with `learn_sigma`), float32.

        Raises:
          InputError: the image does not divide into patches, the heads do not divide the width, or
            the label is missing.
        """
        self._check(condition)
        dtype = jnp.dtype(self.dtype)
        grid = patch_grid(x.shape, self.patch)
        channels = x.shape[-1] * (2 if self.learn_sigma else 1)

        tokens = linear(self.hidden, patchify(x, self.patch).astype(dtype), "patch_embed")
        tokens = tokens + jnp.asarray(sincos_2d(grid, self.hidden), dtype)
        c = TimestepEmbedder(self.hidden, self.time_features, name="time_embed")(t)
        if self.num_classes:
            embed = LabelEmbedder(
                self.num_classes, self.hidden, self.label_dropout, name="label_embed"
            )
            c = c + embed(condition["label"], train)

        context = Context(c.astype(dtype), t, condition, grid, train)
        ffn = self.ffn.clone(parent=None, name=None)
        block = DiTBlock(self.heads, self.attention, ffn, parent=None)
        tokens, aux = Stack(block, self.depth, self.remat, name="blocks")(tokens, context)
        tokens = FinalLayer(self.patch**2 * channels, name="final")(tokens, context.vector)
        return Output(unpatchify(tokens, grid, self.patch).astype(jnp.float32), aux)

    def null_condition(self, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the condition that stands for "no condition", of the same shapes."""
        if not self.num_classes:
            return condition
        return condition | {"label": jnp.full_like(condition["label"], self.num_classes)}

    def frozen_parameters(self, shape: tuple[int, int, int]) -> int:
        """Size of the fixed position table for samples [h, w, c], which the papers count."""
        return math.prod(patch_grid(shape, self.patch)) * self.hidden

    def _check(self, condition: dict[str, jax.Array]) -> None:
        if self.hidden % self.heads or self.hidden % 4:
            raise InputError(
                f"a width of {self.hidden} must be a multiple of 4 and of the {self.heads} heads"
            )
        if self.num_classes and "label" not in condition:
            raise InputError(
                f"this model has {self.num_classes} classes and was called without 'label': "
                f"pass {{'label': int32 [B]}}, or set num_classes=0"
            )
