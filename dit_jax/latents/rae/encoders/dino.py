"""DINO's features at several depths (Caron et al., arXiv 2104.14294)."""

import dataclasses

import flax.linen as nn
import jax

from dit_jax.errors import InputError
from dit_jax.latents.rae.encoders.vit import Perceptron, VisionEncoder
from dit_jax.layers.patch import patch_grid
from dit_jax.layers.stack import Stack


class Dino(VisionEncoder):
    """DINO ViT-S/8 as a discriminator looks through it (StyleGAN-T, arXiv 2301.09515).

    Attributes:
      tapped: blocks whose tokens are returned, ascending.
    """

    patch: int = 8
    hidden: int = 384
    heads: int = 6
    # RAE's discriminator approximates the GELU with which DINO was trained.
    ffn: nn.Module = dataclasses.field(default_factory=lambda: Perceptron(1536, approximate=True))
    tapped: tuple[int, ...] = (2, 5, 8, 11)

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Maps normalised images [B, H, W, 3] to tokens [B, N, hidden] after the tapped blocks.

        Those of the last one come first, and again at their place: RAE has two heads for them.

        Raises:
          InputError: there are no such blocks, or the images do not divide into patches.
        """
        if list(self.tapped) != sorted({*self.tapped} & {*range(self.depth)}):
            raise InputError(
                f"blocks {self.tapped} of {self.depth}: tap some of them, in ascending order"
            )
        grid = patch_grid(images.shape, self.patch)
        tokens = self.embed(images.astype(self.dtype), grid)
        stack = Stack(self.block(), self.depth, "none", name="blocks")
        found, start = [], 0
        for number in self.tapped:
            tokens, _ = stack(tokens, grid, start, number + 1)
            found.append(tokens[:, self.prefix_tokens :])
            start = number + 1
        return [found[-1], *found]
