"""Representation autoencoders: latents that a frozen vision encoder makes (arXiv 2510.11690)."""
