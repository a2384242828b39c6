"""What the vision encoders share: ViT (Dosovitskiy et al., arXiv 2010.11929)."""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.latents.rae.resize import resize_bicubic
from dit_jax.layers.attention import SelfAttention
from dit_jax.layers.linear import Init, linear
from dit_jax.layers.patch import patch_grid, patchify
from dit_jax.layers.stack import Stack

_normal = nn.initializers.normal(0.02)


class Perceptron(nn.Module):
    """A two-layer perceptron with GELU.

    Attributes:
      width: of the hidden layer.
      approximate: GELU by its approximation with tanh.
      initial: initialisation of both layers.
    """

    width: int = 3072
    approximate: bool = False
    initial: Init = "xavier"

    @nn.compact
    def __call__(self, x: jax.Array, context: None = None) -> tuple[jax.Array, dict]:
        """Maps tokens [B, N, D] to tokens [B, N, D] and an empty aux."""
        del context  # Nothing conditions an encoder.
        hidden = linear(self.width, x, "fc1", init=self.initial)
        hidden = nn.gelu(hidden, approximate=self.approximate)
        return linear(x.shape[-1], hidden, "fc2", init=self.initial), {}


class VisionEncoderBlock(nn.Module):
    """Attention and a channel mixer, each under a norm and added to its input.

    Attributes:
      attention: token mixing, a module mapping (tokens, grid) to tokens.
      ffn: channel mixing, a module mapping (tokens, context) to (tokens, aux).
      eps: of the norms.
      layer_scale: learn a factor per channel of what is added (arXiv 2103.17239).
    """

    attention: nn.Module
    ffn: nn.Module
    eps: float
    layer_scale: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, grid: tuple[int, ...]) -> tuple[jax.Array, dict]:
        """Maps tokens [B, N, D] on `grid` to tokens [B, N, D] and the channel mixer's aux."""
        mixed = self.attention(layer_norm(x, "norm1", self.eps), grid)
        x = x + self._scaled(mixed, "scale1")
        mixed, aux = self.ffn(layer_norm(x, "norm2", self.eps), None)
        return x + self._scaled(mixed, "scale2"), aux

    def _scaled(self, x: jax.Array, name: str) -> jax.Array:
        if not self.layer_scale:
            return x
        return x * self.param(name, nn.initializers.ones, (x.shape[-1],)).astype(x.dtype)


class VisionEncoder(nn.Module):
    """A vision transformer: images to one token a patch.

    Images are normalised before they come here, by `mean` and `std`, per channel of values in
    [0, 1]. Tokens before those of the patches (CLS, registers), `prefix_tokens` in number, take
    part in the attention and are not returned.

    Attributes:
      patch: side of a square patch, in pixels.
      hidden: width of the tokens; a multiple of `heads`.
      depth: number of blocks.
      heads: number of attention heads.
      ffn: channel mixer of the blocks.
      image_size: side of the square images that there is a position embedding for; for others it
        is resized.
      eps: of the norms.
      affine: scale and bias of the last norm. Without them the tokens of a patch have zero mean and
        unit variance, as representation autoencoders want them; parameters with them do for both.
      dtype: compute dtype; parameters, norms' statistics and results are float32.
    """

    patch: int = 16
    hidden: int = 768
    depth: int = 12
    heads: int = 12
    ffn: nn.Module = dataclasses.field(default_factory=Perceptron)
    image_size: int = 224
    eps: float = 1e-6
    affine: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"

    mean: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)
    prefix_tokens: ClassVar[int] = 1
    layer_scale: ClassVar[bool] = False
    antialias: ClassVar[bool] = False

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images.

        Args:
          images: [B, H, W, 3], float, normalised; H and W multiples of `patch`.

        Returns:
          Tokens [B, N, hidden] of the N patches, row-major, float32.

        Raises:
          InputError: the images do not divide into patches, or the heads do not divide the width.
        """
        return self.all_tokens(images)[:, self.prefix_tokens :]

    def all_tokens(self, images: jax.Array) -> jax.Array:
        """Maps images to the tokens [B, prefix_tokens + N, hidden] after the last norm."""
        if self.hidden % self.heads:
            raise InputError(f"a width of {self.hidden} does not divide into {self.heads} heads")
        grid = patch_grid(images.shape, self.patch)
        tokens = self.embed(images.astype(self.dtype), grid)
        tokens, _ = Stack(self.block(), self.depth, "none", name="blocks")(tokens, grid)
        return layer_norm(tokens.astype(jnp.float32), "norm", self.eps, affine=self.affine)

    def embed(self, images: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Maps images to the tokens [B, prefix_tokens + N, hidden] that the first block sees."""
        tokens = linear(self.hidden, patchify(images, self.patch), "patch_embed")
        side = self.image_size // self.patch
        placed = min(self.prefix_tokens, 1)  # The CLS token has a position, registers have none.
        positions = self.param("position", _normal, (placed + side**2, self.hidden))
        prefix, table = positions[:placed], positions[placed:]
        if grid != (side, side):
            table = table.reshape(side, side, self.hidden)
            table = resize_bicubic(table, grid, antialias=self.antialias)
        tokens = tokens + table.reshape(-1, self.hidden).astype(tokens.dtype)
        if self.prefix_tokens > 0:
            prefix = prefix + self.param("cls", _normal, (1, self.hidden))
        if self.prefix_tokens > 1:
            shape = (self.prefix_tokens - 1, self.hidden)
            prefix = jnp.concatenate([prefix, self.param("registers", _normal, shape)])
        prefix = jnp.broadcast_to(prefix.astype(tokens.dtype), (len(images), *prefix.shape))
        return jnp.concatenate([prefix, tokens], axis=1)

    def block(self) -> VisionEncoderBlock:
        """Returns one block, which takes one layer of `params["blocks"]["layers"]`."""
        attention = SelfAttention(self.heads, parent=None)
        ffn = self.ffn.clone(parent=None, name=None)
        return VisionEncoderBlock(attention, ffn, self.eps, self.layer_scale, parent=None)


def layer_norm(x: jax.Array, name: str, eps: float, *, affine: bool = True) -> jax.Array:
    """Applies a norm of the calling module over the last axis."""
    # The fast variance, a difference of squares, loses digits where the mean is large.
    norm = nn.LayerNorm(
        eps, x.dtype, use_scale=affine, use_bias=affine, use_fast_variance=False, name=name
    )
    return norm(x)
