"""Representation autoencoders: latents that a frozen vision encoder makes (arXiv 2510.11690)."""

from dit_jax.latents.rae.autoencoder import RepresentationAutoencoder
from dit_jax.latents.rae.decoder import ViTDecoder
from dit_jax.latents.rae.latents import RAE
from dit_jax.latents.rae.normalization import Normalization

__all__ = ["RAE", "Normalization", "RepresentationAutoencoder", "ViTDecoder"]
