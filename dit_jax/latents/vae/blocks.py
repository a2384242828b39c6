"""Blocks of latent diffusion's autoencoder (Rombach et al., arXiv 2112.10752)."""

import einops
import flax.linen as nn
import jax

from dit_jax.attention import Full
from dit_jax.layers.linear import linear


def conv(features: int, x: jax.Array, name: str, kernel: int = 3) -> jax.Array:
    """Applies a convolution of the calling module that keeps height and width.

    Parameters are float32, the compute dtype is that of `x`.

    Args:
      features: output channels.
      x: input [B, H, W, C].
      name: name of the layer's parameters.
      kernel: side of the kernel, odd.
    """
    window = (kernel, kernel)
    return nn.Conv(features, window, padding=kernel // 2, dtype=x.dtype, name=name)(x)


def group_norm(groups: int, x: jax.Array, name: str) -> jax.Array:
    """Applies a group norm of the calling module to [B, H, W, C]; statistics in float32."""
    # The fast variance, a difference of squares, loses digits where the mean is large.
    norm = nn.GroupNorm(groups, epsilon=1e-6, dtype=x.dtype, use_fast_variance=False, name=name)
    return norm(x)


def downsample(x: jax.Array, name: str) -> jax.Array:
    """Halves height and width by a convolution of the calling module.

    Zeros pad the bottom and the right only: output pixel i sees inputs 2i to 2i + 2.
    """
    padding = ((0, 1), (0, 1))
    return nn.Conv(x.shape[-1], (3, 3), 2, padding=padding, dtype=x.dtype, name=name)(x)


def upsample(x: jax.Array, name: str) -> jax.Array:
    """Doubles height and width: every pixel four times, then a convolution."""
    return conv(x.shape[-1], einops.repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2), name)


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, added to the input.

    Attributes:
      features: output channels; where the input has others, a 1x1 convolution brings it along.
      groups: groups of the norms.
    """

    features: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features]."""
        y = conv(self.features, nn.silu(group_norm(self.groups, x, "norm1")), "conv1")
        y = conv(self.features, nn.silu(group_norm(self.groups, y, "norm2")), "conv2")
        if x.shape[-1] != self.features:
            x = conv(self.features, x, "shortcut", kernel=1)
        return x + y


class AttentionBlock(nn.Module):
    """Norm and self-attention of one head over all pixels, added to the input.

    Attributes:
      groups: groups of the norm.
    """

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape."""
        _, height, width, features = x.shape
        tokens = einops.rearrange(group_norm(self.groups, x, "norm"), "b h w c -> b (h w) c")
        qkv = linear((3, 1, features), tokens, "qkv")
        mixed = Full()(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], (height, width))
        return x + linear(features, mixed, "out", axis=(-2, -1)).reshape(x.shape)


class DownBlock(nn.Module):
    """Residual blocks of one resolution, then half of it.

    Attributes:
      features: output channels.
      layers: number of residual blocks.
      groups: groups of the norms.
      last: leave the resolution as it is.
    """

    features: int
    layers: int
    groups: int
    last: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / 2, W / 2, features], or with `last` [B, H, W, features]."""
        for i in range(self.layers):
            x = ResidualBlock(self.features, self.groups, name=f"block_{i}")(x)
        return x if self.last else downsample(x, "downsample")


class MidBlock(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution.

    Attributes:
      groups: groups of the norms.
    """

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape."""
        features = x.shape[-1]
        x = ResidualBlock(features, self.groups, name="block_0")(x)
        x = AttentionBlock(self.groups, name="attention")(x)
        return ResidualBlock(features, self.groups, name="block_1")(x)


class UpBlock(nn.Module):
    """Residual blocks of one resolution, then twice of it.

    Attributes:
      features: output channels.
      layers: number of residual blocks.
      groups: groups of the norms.
      last: leave the resolution as it is.
    """

    features: int
    layers: int
    groups: int
    last: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, 2 H, 2 W, features], or with `last` [B, H, W, features]."""
        for i in range(self.layers):
            x = ResidualBlock(self.features, self.groups, name=f"block_{i}")(x)
        return x if self.last else upsample(x, "upsample")
