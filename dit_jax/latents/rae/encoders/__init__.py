"""Frozen vision encoders whose tokens are diffused."""

from dit_jax.latents.rae.encoders.dinov2 import Dinov2
from dit_jax.latents.rae.encoders.mae import MAE
from dit_jax.latents.rae.encoders.siglip import SigLIP
from dit_jax.latents.rae.encoders.vit import Perceptron, VisionEncoder, VisionEncoderBlock

__all__ = ["MAE", "Dinov2", "Perceptron", "SigLIP", "VisionEncoder", "VisionEncoderBlock"]
