"""What every latent space offers."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Latents(abc.ABC):
    """A map between a source's arrays and the space that is diffused.

    Encoding has two halves: `store` does what is the same for an image each time, and can therefore
    be written to files once for all (`Cached`); `restore` does what is drawn anew.

    `decodes` says whether there is a way back to images.
    """

    @property
    @abc.abstractmethod
    def decodes(self) -> bool:
        """Whether `decode` gives images."""

    @property
    def source_dtype(self) -> np.dtype:
        """Dtype of the arrays that the source is to deliver."""
        return np.dtype(np.uint8)

    @abc.abstractmethod
    def shape(self, source: tuple[int, int, int]) -> tuple[int, int, int]:
        """Shape [h, w, c] of a latent, given a source's array shape [H, W, C]."""

    def load(self) -> Any:
        """Reads the parameters that `store` and `encode` need; nothing where they need none.

        Raises:
          InputError: they are not where they should be.
        """
        return {}

    def load_decoder(self) -> Any:
        """Reads the parameters that `decode` needs: those of `load` unless a space says otherwise.

        Raises:
          InputError: they are not where they should be.
        """
        return self.load()

    @abc.abstractmethod
    def store(self, params: Any, images: jax.Array) -> jax.Array:
        """Maps a batch as the source delivers it to what `restore` takes, float32 [B, ...]."""

    def restore(self, key: jax.Array, stored: jax.Array) -> jax.Array:
        """Maps what `store` gave, or a rounded copy of it, to latents [B, h, w, c], float32.

        Where nothing is drawn at random that is the latents themselves.
        """
        del key
        return stored.astype(jnp.float32)

    def encode(self, params: Any, key: jax.Array, images: jax.Array) -> jax.Array:
        """Maps a batch as the source delivers it to latents [B, h, w, c], float32."""
        return self.restore(key, self.store(params, images))

    @abc.abstractmethod
    def decode(self, params: Any, x: jax.Array) -> jax.Array:
        """Maps latents [B, h, w, c] to images [B, H, W, C] in [-1, 1], float32."""
