"""Frozen vision encoders whose tokens are diffused."""

from dit_jax.latents.rae.encoders.dino import Dino
from dit_jax.latents.rae.encoders.dinov2 import Dinov2
from dit_jax.latents.rae.encoders.efficientnet import EfficientNetFeatures, EfficientNetLite0
from dit_jax.latents.rae.encoders.mae import MAE
from dit_jax.latents.rae.encoders.siglip import SigLIP
from dit_jax.latents.rae.encoders.vit import Perceptron, VisionEncoder, VisionEncoderBlock

__all__ = [
    "MAE",
    "Dino",
    "Dinov2",
    "EfficientNetFeatures",
    "EfficientNetLite0",
    "Perceptron",
    "SigLIP",
    "VisionEncoder",
    "VisionEncoderBlock",
]
