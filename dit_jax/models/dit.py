"""DiT: Scalable Diffusion Models with Transformers (Peebles & Xie, arXiv 2212.09748)."""

import dataclasses
import math
import re
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.attention import Full, TokenMixer
from dit_jax.attention.per_layer import layer_ranges
from dit_jax.errors import InputError
from dit_jax.layers.attention import SelfAttention, unbound
from dit_jax.layers.block import Alternate, Block, BlockGroup, FinalLayer
from dit_jax.layers.context import Context
from dit_jax.layers.label import add_label, null_label
from dit_jax.layers.linear import linear
from dit_jax.layers.mlp import Mlp
from dit_jax.layers.norm import Norm
from dit_jax.layers.patch import patch_grid, patchify, unpatchify
from dit_jax.layers.position import sincos_2d
from dit_jax.layers.rope import AxialRope
from dit_jax.layers.stack import Remat, Stack
from dit_jax.layers.timestep import Sinusoid, TimestepEmbedder
from dit_jax.models.output import Output


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
      attention: token mixer of the blocks, or several (`PerLayer`).
      qk_norm: norm of queries and keys, or None.
      rope: rotary position embedding, besides the sines that are added to the tokens.
      ffn: channel mixer of the blocks, or several that take turns.
      norm: kind of norm in the blocks and at the end.
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
    qk_norm: nn.Module | None = None
    rope: AxialRope | None = None
    ffn: nn.Module = dataclasses.field(default_factory=Mlp)
    norm: Norm = "layer"
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
        if self.hidden % self.heads or self.hidden % 4:
            raise InputError(
                f"a width of {self.hidden} must be a multiple of 4 and of the {self.heads} heads"
            )
        if self.depth % self.period:
            raise InputError(
                f"a depth of {self.depth} is not a multiple of the {self.period} channel mixers "
                "that take turns"
            )
        dtype = jnp.dtype(self.dtype)
        grid = patch_grid(x.shape, self.patch)
        channels = x.shape[-1] * (2 if self.learn_sigma else 1)

        tokens = linear(self.hidden, patchify(x, self.patch).astype(dtype), "patch_embed")
        tokens = tokens + jnp.asarray(sincos_2d(grid, self.hidden), dtype)
        time = TimestepEmbedder(self.hidden, self.time_features, name="time_embed")(t)
        dropout = self.label_dropout
        c, conditional = add_label(time, condition, self.num_classes, dropout, train)

        context = Context(c.astype(dtype), t, time.astype(dtype), conditional, grid, train)
        tokens, aux = self._run_blocks(tokens, context)
        final = FinalLayer(self.patch**2 * channels, self.norm, name="final")
        tokens = final(tokens, context.vector)
        return Output(unpatchify(tokens, grid, self.patch).astype(jnp.float32), aux)

    def _run_blocks(self, tokens: jax.Array, context: Context) -> tuple[jax.Array, Any]:
        """The stack's tokens, and its aux with the layer as axis 0."""
        stack = Stack(self.block(), self.depth // self.period, self.remat, name="blocks")
        found = []
        for mixer, start, stop in layer_ranges(self.attention, self.depth):
            if start % self.period or stop % self.period:
                raise InputError(
                    f"PerLayer's layers {start} to {stop} are not a multiple of the {self.period} "
                    "channel mixers that take turns"
                )
            block = self.clone(attention=mixer, parent=None, name=None).block()
            tokens, aux = stack(tokens, context, start // self.period, stop // self.period, block)
            found.append(aux)
        aux = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)
        if self.period > 1:  # Axes 0 and 1, group and block, are the layer.
            aux = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), aux)
        return tokens, aux

    def block(self) -> nn.Module:
        """Returns what is stacked, which takes one layer of `params["blocks"]["layers"]`.

        (Of the first layers, where mechanisms of attention differ.)
        """
        if isinstance(self.ffn, Alternate):
            return BlockGroup(tuple(self.block_with(ffn) for ffn in self.ffn.mixers), parent=None)
        return self.block_with(self.ffn)

    @property
    def period(self) -> int:
        """Number of blocks after which the kinds of channel mixers repeat."""
        return len(self.ffn.mixers) if isinstance(self.ffn, Alternate) else 1

    def block_with(self, ffn: nn.Module) -> nn.Module:
        """Returns a block, (tokens, context) -> (tokens, aux), with this channel mixer.

        What a kind of DiT that has other blocks overrides.
        """
        qk_norm = self.qk_norm and self.qk_norm.clone(parent=None, name=None)
        mixer = unbound(layer_ranges(self.attention, self.depth)[0][0])
        attention = SelfAttention(self.heads, mixer, qk_norm, self.rope, parent=None)
        return Block(attention, ffn.clone(parent=None, name=None), self.norm, parent=None)

    def active_share(self, path: str) -> float:
        """Share of the experts at a parameter's path that a token meets, on average."""
        found = re.search(r"/blocks_(\d+)/", path)
        mixer = self.ffn.mixers[int(found[1])] if found else self.ffn
        return mixer.active

    def null_condition(self, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the condition that stands for "no condition", of the same shapes."""
        return null_label(condition, self.num_classes)

    def frozen_parameters(self, shape: tuple[int, int, int]) -> int:
        """Size of the fixed position table for samples [h, w, c], which the papers count."""
        return math.prod(patch_grid(shape, self.patch)) * self.hidden
