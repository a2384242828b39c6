"""The encoder of masked autoencoders (He et al., arXiv 2111.06377)."""

from dit_jax.latents.rae.encoders.vit import VisionEncoder


class MAE(VisionEncoder):
    """MAE's encoder, which sees all patches here and in their order; ViT-B/16 by default.

    Its position embeddings are sines that it was trained with and that its files hold.
    """

    eps: float = 1e-12
