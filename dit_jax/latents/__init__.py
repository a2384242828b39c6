"""The space that is diffused."""

from dit_jax.latents.cached import CachedVAE
from dit_jax.latents.latents import Latents
from dit_jax.latents.pixels import Pixels
from dit_jax.latents.vae import VAE

__all__ = ["VAE", "CachedVAE", "Latents", "Pixels"]
