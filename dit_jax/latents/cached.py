"""Latents that `python -m dit_jax cache-latents` wrote beforehand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.errors import InputError
from dit_jax.latents.latents import Latents


@dataclasses.dataclass(frozen=True)
class Cached(Latents):
    """A space whose source delivers what the space would store of its images.

    Training on it costs no encoder pass, and needs the autoencoder neither in memory nor on disk;
    what is random in the encoding is still drawn anew each time a record is read.

    Attributes:
      space: whose latents these are. It decodes samples, where it has the weights.
    """

    space: Latents

    @property
    def decodes(self):
        return self.space.decodes

    @property
    def source_dtype(self):
        """Dtype of the arrays that the source is to deliver; half precision does as well."""
        return np.dtype(np.float32)

    def shape(self, source):
        def restored(stored: jax.Array) -> jax.Array:
            return self.space.restore(jax.random.key(0), stored)

        stored = jax.ShapeDtypeStruct((1, *source), jnp.float32)
        return jax.eval_shape(restored, stored).shape[1:]

    def load_decoder(self):
        return self.space.load_decoder()

    def store(self, params, images):
        """Returns the source's arrays, which were stored already.

        Raises:
          InputError: they are images.
        """
        del params
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"the data are {images.dtype} images, not cached latents: write these with "
                f"`python -m dit_jax cache-latents`, or encode while training with latents="
                f"{type(self.space).__name__}(...)"
            )
        return images

    def restore(self, key, stored):
        return self.space.restore(key, stored)

    def decode(self, params, x):
        return self.space.decode(params, x)
