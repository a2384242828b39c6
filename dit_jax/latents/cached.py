"""Latents that an autoencoder wrote beforehand."""

import dataclasses

import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.latents.latents import Latents


@dataclasses.dataclass(frozen=True)
class CachedVAE(Latents):
    """Means and log variances of a VAE's posterior, sampled anew each time they are read.

    The source delivers [h, w, 2c] float arrays: means, then log variances. Training on them costs
    no encoder pass (the DiT recipe samples the posterior, then scales).

    Attributes:
      scale: factor that brings latents to unit variance; 0.18215 for Stable Diffusion's VAE.
    """

    scale: float = 0.18215

    @property
    def decodes(self):
        return False

    def shape(self, source):
        height, width, channels = source
        if channels % 2:
            raise InputError(
                f"cached latents have {channels} channels, not means and log variances: "
                f"write both halves"
            )
        return height, width, channels // 2

    def encode(self, params, key, images):
        mean, log_variance = jnp.split(images.astype(jnp.float32), 2, axis=-1)
        std = jnp.exp(jnp.clip(log_variance, -30, 20) / 2)
        return self.scale * (mean + std * jax.random.normal(key, mean.shape))

    def decode(self, params, x):
        """Raises InputError: the decoder is not part of cached latents."""
        raise InputError(
            "cached latents have no decoder: sample with decode=False to get the latents"
        )
