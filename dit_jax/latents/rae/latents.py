"""The latent space of a representation autoencoder (RAE; Zheng et al., arXiv 2510.11690)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.latents.latents import Latents
from dit_jax.latents.rae.decoder import ViTDecoder
from dit_jax.latents.rae.encoders import EfficientNetLite0, VisionEncoder
from dit_jax.latents.rae.normalization import Normalization
from dit_jax.latents.rae.resize import resize_bicubic
from dit_jax.weights import load_module, load_weights


@dataclasses.dataclass(frozen=True)
class RAE(Latents):
    """Tokens of a frozen vision encoder, one a patch of the decoder, laid out as an image.

    Images are resized so that the encoder sees as many patches as the decoder draws: 224 pixels of
    256 for an encoder with patches of 14 and a decoder with patches of 16.

    Attributes:
      encoder: the vision encoder, which needs no `affine` at its end.
      decoder: from its tokens back to pixels.
      encoder_weights: folder of the encoder's converted weights; None where nothing is encoded.
      decoder_weights: folder of the decoder's: converted, or the run that trained it. None for
        latents that are not decoded.
      statistics: folder of the latents' statistics: converted, or made by `python -m dit_jax
        latent-stats`. None for latents as the encoder gives them.
      normalization: how statistics are used.

    All three folders may be one, of an autoencoder converted as a whole.
    """

    encoder: VisionEncoder | EfficientNetLite0
    encoder_weights: str | None = None
    decoder: ViTDecoder = dataclasses.field(default_factory=ViTDecoder)
    decoder_weights: str | None = None
    statistics: str | None = None
    normalization: Normalization = dataclasses.field(default_factory=Normalization)

    @property
    def decodes(self):
        return self.decoder_weights is not None

    def shape(self, source):
        height, width, _ = source
        patch = self.decoder.patch
        if height % patch or width % patch:
            raise InputError(
                f"images of {height}x{width} do not divide into the decoder's patches of "
                f"{patch}x{patch}: choose another size of the data"
            )
        return height // patch, width // patch, self.encoder.hidden

    def load(self):
        if self.encoder_weights is None:
            raise InputError("these latents have no encoder: set latents.encoder-weights")
        side = self.encoder.patch
        params = load_module(self.encoder_weights, self.encoder, (side, side, 3), "encoder")
        return {"encoder": params} | self._statistics()

    def load_decoder(self):
        if not self.decodes:
            raise InputError("these latents have no decoder: set latents.decoder-weights")
        shape = (1, 1, self.encoder.hidden)
        params = load_module(self.decoder_weights, self.decoder, shape, "decoder")
        return {"decoder": params} | self._statistics()

    def tokens(self, encoder: Any, images: jax.Array) -> jax.Array:
        """What an encoder's parameters see in uint8 images [B, H, W, 3]: [B, h, w, C], float32."""
        grid = self.shape(images.shape[1:])[:2]
        size = tuple(side * self.encoder.patch for side in grid)
        pixels = images.astype(jnp.float32) / 255
        if size != images.shape[1:3]:
            pixels = resize_bicubic(pixels, size)
        pixels = (pixels - jnp.array(self.encoder.mean)) / jnp.array(self.encoder.std)
        tokens = self.encoder.apply({"params": encoder}, pixels)
        return tokens.reshape(len(images), *grid, -1)

    def pixels(self, drawn: jax.Array) -> jax.Array:
        """Turns what the decoder draws [B, H, W, 3] into pixels, in [0, 1] or so."""
        return drawn * jnp.array(self.encoder.std) + jnp.array(self.encoder.mean)

    def store(self, params, images):
        """Raises InputError: the source delivers no images."""
        if images.dtype != jnp.uint8:
            raise InputError(
                f"the data are {images.dtype} arrays and no images: latents that were cached want "
                f"latents=Cached(RAE(...))"
            )
        return self._normalize(params, self.tokens(params["encoder"], images))

    def decode(self, params, x):
        tokens = self._normalize(params, x, inverse=True)
        return 2 * self.pixels(self.decoder.apply({"params": params["decoder"]}, tokens)) - 1

    def _normalize(self, params: Any, x: jax.Array, inverse: bool = False) -> jax.Array:
        if self.statistics is None:
            return x
        return self.normalization.apply({"params": params["statistics"]}, x, inverse)

    def _statistics(self) -> dict[str, Any]:
        """The statistics' parameters, if there are any, by their name."""
        if self.statistics is None:
            return {}
        found = load_weights(self.statistics, None, "statistics")
        kept = self.normalization.kept
        if found.keys() != {"mean", kept}:
            raise InputError(
                f"'{self.statistics}' holds {', '.join(found)} and not mean and {kept}: give the "
                f"folder of statistics, or set latents.normalization.kept"
            )
        return {"statistics": found}
