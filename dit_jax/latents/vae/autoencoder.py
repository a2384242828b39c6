"""The autoencoder of Latent Diffusion and Stable Diffusion (Rombach et al., arXiv 2112.10752)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.latents.vae.blocks import DownBlock, MidBlock, UpBlock, conv, group_norm

# The authors' bounds: variances of 1e-13 to 5e8.
LOG_VARIANCES = (-30.0, 20.0)


class Encoder(nn.Module):
    """Images to the moments of their latents.

    Attributes:
      features: output channels.
      channels: channels of each resolution, the highest first.
      layers: residual blocks of each resolution.
      groups: groups of the norms.
    """

    features: int
    channels: tuple[int, ...]
    layers: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, h, w, features]."""
        x = conv(self.channels[0], x, "conv_in")
        for i, width in enumerate(self.channels):
            last = i == len(self.channels) - 1
            x = DownBlock(width, self.layers, self.groups, last, name=f"down_{i}")(x)
        x = MidBlock(self.groups, name="mid")(x)
        return conv(self.features, nn.silu(group_norm(self.groups, x, "norm_out")), "conv_out")


class Decoder(nn.Module):
    """Latents to images.

    Attributes:
      features: output channels.
      channels: channels of each resolution, the highest first.
      layers: residual blocks of each resolution.
      groups: groups of the norms.
    """

    features: int
    channels: tuple[int, ...]
    layers: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, c] to [B, H, W, features]."""
        x = conv(self.channels[-1], x, "conv_in")
        x = MidBlock(self.groups, name="mid")(x)
        for i, width in enumerate(reversed(self.channels)):
            last = i == len(self.channels) - 1
            x = UpBlock(width, self.layers, self.groups, last, name=f"up_{i}")(x)
        return conv(self.features, nn.silu(group_norm(self.groups, x, "norm_out")), "conv_out")


class AutoencoderKL(nn.Module):
    """A convolutional variational autoencoder with attention at its lowest resolution.

    Latents come out as the network makes them: the factor that brings them to unit variance is the
    latent space's. Call it by method: `vae.apply({"params": params}, images, method="encode")`.

    Attributes:
      channels: channels of each resolution, the highest first; each further one halves the sides.
      layers: residual blocks of each resolution; the decoder has one more.
      latent_channels: channels of a latent.
      image_channels: channels of an image.
      groups: groups of the norms; must divide all channels.
      use_quant_conv: 1x1 convolutions next to the latents, which newer models lack (SD3, FLUX).
      dtype: compute dtype; parameters, norms' statistics and results are float32.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    image_channels: int = 3
    groups: int = 32
    use_quant_conv: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"

    def setup(self):
        """Declares the parts."""
        if any(width % self.groups for width in self.channels):
            raise InputError(
                f"channels {tuple(self.channels)} do not divide into {self.groups} groups: choose "
                f"groups that divide them all"
            )
        moments = 2 * self.latent_channels
        self.encoder = Encoder(moments, self.channels, self.layers, self.groups)
        self.decoder = Decoder(self.image_channels, self.channels, self.layers + 1, self.groups)
        if self.use_quant_conv:
            dtype = jnp.dtype(self.dtype)
            self.quant_conv = nn.Conv(moments, (1, 1), dtype=dtype)
            self.post_quant_conv = nn.Conv(self.latent_channels, (1, 1), dtype=dtype)

    @property
    def factor(self) -> int:
        """Side of the square of pixels that becomes one pixel of the latent."""
        return 2 ** (len(self.channels) - 1)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps images to the posterior over their latents, a normal of independent components.

        Args:
          images: [B, H, W, image_channels], float, in [-1, 1]; H and W multiples of `factor`.

        Returns:
          Mean and log variance, each [B, H / factor, W / factor, latent_channels], float32; the log
          variance is clipped to [-30, 20].

        Raises:
          InputError: the images do not have these sides or channels.
        """
        _, height, width, channels = images.shape
        if channels != self.image_channels or height % self.factor or width % self.factor:
            raise InputError(
                f"cannot encode images of {height}x{width}x{channels}: sides must be multiples of "
                f"{self.factor}, and channels {self.image_channels}"
            )
        moments = self.encoder(images.astype(self.dtype))
        if self.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCES)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Maps latents to images.

        Args:
          latents: [B, h, w, latent_channels], float, at the scale of `encode`.

        Returns:
          [B, factor * h, factor * w, image_channels], float32, in [-1, 1] but for overshoot.

        Raises:
          InputError: the latents have other channels.
        """
        if latents.shape[-1] != self.latent_channels:
            raise InputError(
                f"cannot decode latents of {latents.shape[-1]} channels: this autoencoder's have "
                f"{self.latent_channels}"
            )
        latents = latents.astype(self.dtype)
        if self.use_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Decodes the mean of the posterior of images [B, H, W, image_channels]."""
        return self.decode(self.encode(images)[0])
