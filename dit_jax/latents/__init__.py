"""The space that is diffused."""

from dit_jax.latents.cached import Cached
from dit_jax.latents.latents import Latents
from dit_jax.latents.pixels import Pixels
from dit_jax.latents.rae import RAE
from dit_jax.latents.vae import VAE

__all__ = ["RAE", "VAE", "Cached", "Latents", "Pixels"]
