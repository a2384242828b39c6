"""SigLIP's and SigLIP 2's image tower (Zhai et al., arXiv 2303.15343 and 2502.14786)."""

import dataclasses

import flax.linen as nn

from dit_jax.latents.rae.encoders.vit import Perceptron, VisionEncoder


class SigLIP(VisionEncoder):
    """The image tower without its pooling head; ViT-B/16 at 256 pixels by default.

    SigLIP 2 at a fixed resolution is the same network with other weights. It has no CLS token.
    """

    ffn: nn.Module = dataclasses.field(default_factory=lambda: Perceptron(approximate=True))
    image_size: int = 256

    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    prefix_tokens = 0
