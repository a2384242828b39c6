"""DINOv2 (Oquab et al., arXiv 2304.07193), with registers (Darcet et al., arXiv 2309.16588)."""

from dit_jax.latents.rae.encoders.vit import VisionEncoder


class Dinov2(VisionEncoder):
    """DINOv2's encoder; ViT-B/14 by default. The giant one has `ffn=SwiGLU()`.

    Its released position embeddings are for images of 518 pixels; representation autoencoders give
    it 224. Without registers they are resized as they are, with registers antialiased, as
    transformers' classes do.

    Attributes:
      registers: number of tokens that belong to no patch, besides CLS.
    """

    patch: int = 14
    image_size: int = 518
    registers: int = 0

    layer_scale = True

    @property
    def prefix_tokens(self) -> int:
        """CLS and the registers."""
        return 1 + self.registers

    @property
    def antialias(self) -> bool:
        """Whether resized position embeddings are smoothed."""
        return self.registers > 0
