"""A representation autoencoder in one piece (arXiv 2510.11690)."""

import flax.linen as nn
import jax

from dit_jax.latents.rae.decoder import ViTDecoder
from dit_jax.latents.rae.encoders.vit import VisionEncoder
from dit_jax.latents.rae.normalization import Normalization
from dit_jax.layers.patch import patch_grid


class RepresentationAutoencoder(nn.Module):
    """What a folder with all of it holds; `RAE` reads the parts from there that it needs.

    Attributes:
      encoder: the vision encoder.
      decoder: from its tokens back to pixels.
      statistics: of the tokens; None where there are none.
    """

    encoder: VisionEncoder
    decoder: ViTDecoder
    statistics: Normalization | None

    def __call__(self, images: jax.Array) -> jax.Array:
        """Reconstructs images [B, H, W, 3], normalised as the encoder's, of the encoder's size.

        Returns:
          Images [B, H', W', channels], float32, normalised too: a patch of the decoder's for each
          one of the encoder's.
        """
        grid = patch_grid(images.shape, self.encoder.patch)
        latents = self.encoder(images).reshape(len(images), *grid, -1)
        if self.statistics is not None:
            latents = self.statistics(self.statistics(latents), inverse=True)
        return self.decoder(latents)
