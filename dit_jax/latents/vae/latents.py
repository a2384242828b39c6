"""The latent space of a VAE."""

import dataclasses

import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.latents.latents import Latents
from dit_jax.latents.vae.autoencoder import LOG_VARIANCES, AutoencoderKL
from dit_jax.latents.vae.tiling import tiled_decode, tiled_encode
from dit_jax.weights import load_module


@dataclasses.dataclass(frozen=True)
class VAE(Latents):
    """Latents of a frozen autoencoder (arXiv 2112.10752), a sample of its posterior, scaled.

    Attributes:
      weights: folder of its converted weights; without them there is no encoding and decoding, but
        the latents that were stored before can be trained on (`Cached`).
      model: the autoencoder; Stable Diffusion's by default.
      scale: factor that brings latents to unit variance; 0.18215 for Stable Diffusion's.
      shift: mean of the latents, taken off before they are scaled, as for SD3's and FLUX's.
      tile: side of the tiles, in pixels of the latent, in which larger images are encoded and
        decoded to save memory.
    """

    weights: str | None = None
    model: AutoencoderKL = dataclasses.field(default_factory=AutoencoderKL)
    scale: float = 0.18215
    shift: float = 0.0
    tile: int = 64

    @property
    def decodes(self):
        return self.weights is not None

    def shape(self, source):
        height, width, _ = source
        return height // self.model.factor, width // self.model.factor, self.model.latent_channels

    def load(self):
        if self.weights is None:
            raise InputError(
                "this needs the autoencoder, and VAE.weights is not set: set it to a folder that "
                "`python -m dit_jax convert from-torch` made, or sample with decode=False"
            )
        side = self.model.factor
        return load_module(self.weights, self.model, (side, side, self.model.image_channels))

    def store(self, params, images):
        """Maps uint8 images [B, H, W, C] to means and log variances [B, h, w, 2c], float32."""

        def moments(images: jax.Array) -> jax.Array:
            means_and_log_variances = self.model.apply({"params": params}, images, method="encode")
            return jnp.concatenate(means_and_log_variances, axis=-1)

        return tiled_encode(
            moments,
            images.astype(jnp.float32) / 127.5 - 1,
            factor=self.model.factor,
            tile=self.tile,
            overlap=self.tile // 4,
        )

    def restore(self, key, stored):
        """Draws latents of the posterior that has these means and log variances [B, h, w, 2c].

        Raises:
          InputError: the number of channels is odd.
        """
        channels = stored.shape[-1]
        if channels % 2:
            raise InputError(
                f"a VAE's stored latents have {channels} channels, not means and log variances: "
                f"write both halves"
            )
        mean, log_variance = jnp.split(stored.astype(jnp.float32), 2, axis=-1)
        # Other programs store what the network gives.
        std = jnp.exp(jnp.clip(log_variance, *LOG_VARIANCES) / 2)
        return self.scale * (mean + std * jax.random.normal(key, mean.shape) - self.shift)

    def decode(self, params, x):
        def images(x: jax.Array) -> jax.Array:
            return self.model.apply({"params": params}, x, method="decode")

        x = x / self.scale + self.shift
        return tiled_decode(
            images, x, factor=self.model.factor, tile=self.tile, overlap=self.tile // 4
        )
