"""The latent space of a VAE, encoded as training goes and decoded when sampling."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from dit_jax.latents.latents import Latents
from dit_jax.latents.vae.autoencoder import AutoencoderKL
from dit_jax.latents.vae.tiling import tiled_decode, tiled_encode
from dit_jax.weights import load_weights


@dataclasses.dataclass(frozen=True)
class VAE(Latents):
    """Latents of a frozen autoencoder (arXiv 2112.10752), a sample of its posterior, scaled.

    Attributes:
      weights: folder of its converted weights.
      model: the autoencoder; Stable Diffusion's by default.
      scale: factor that brings latents to unit variance; 0.18215 for Stable Diffusion's.
      shift: mean of the latents, taken off before they are scaled, as for SD3's and FLUX's.
      tile: side of the tiles, in pixels of the latent, in which larger images are encoded and
        decoded to save memory.
    """

    weights: str
    model: AutoencoderKL = dataclasses.field(default_factory=AutoencoderKL)
    scale: float = 0.18215
    shift: float = 0.0
    tile: int = 64

    @property
    def decodes(self):
        return True

    def shape(self, source):
        height, width, _ = source
        return height // self.model.factor, width // self.model.factor, self.model.latent_channels

    def load(self):
        return _load(self.weights, self.model)

    def encode(self, params, key, images):
        def moments(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.model.apply({"params": params}, images, method="encode")

        images = images.astype(jnp.float32) / 127.5 - 1
        mean, log_variance = tiled_encode(
            moments, images, factor=self.model.factor, tile=self.tile, overlap=self.tile // 4
        )
        noise = jax.random.normal(key, mean.shape)
        return self.scale * (mean + jnp.exp(log_variance / 2) * noise - self.shift)

    def decode(self, params, x):
        def images(x: jax.Array) -> jax.Array:
            return self.model.apply({"params": params}, x, method="decode")

        x = x / self.scale + self.shift
        return tiled_decode(
            images, x, factor=self.model.factor, tile=self.tile, overlap=self.tile // 4
        )


@functools.lru_cache(maxsize=1)
def _load(weights: str, model: AutoencoderKL) -> Any:
    side = model.factor
    images = jax.ShapeDtypeStruct((1, side, side, model.image_channels), jnp.float32)
    return load_weights(weights, jax.eval_shape(model.init, jax.random.key(0), images)["params"])
