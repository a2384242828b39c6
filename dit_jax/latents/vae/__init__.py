"""Autoencoders whose latents are diffused."""

from dit_jax.latents.vae.autoencoder import AutoencoderKL
from dit_jax.latents.vae.latents import VAE
from dit_jax.latents.vae.tiling import tiled_decode, tiled_encode

__all__ = ["VAE", "AutoencoderKL", "tiled_decode", "tiled_encode"]
