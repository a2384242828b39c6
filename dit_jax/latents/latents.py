"""What every latent space offers."""

import abc
import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Latents(abc.ABC):
    """A map between a source's arrays and the space that is diffused.

    `decodes` says whether there is a way back to images.
    """

    @property
    @abc.abstractmethod
    def decodes(self) -> bool:
        """Whether `decode` gives images."""

    @abc.abstractmethod
    def shape(self, source: tuple[int, int, int]) -> tuple[int, int, int]:
        """Shape [h, w, c] of a latent, given a source's array shape [H, W, C]."""

    def load(self) -> Any:
        """Reads the parameters that `encode` and `decode` need; nothing where they need none.

        Raises:
          InputError: they are not where they should be.
        """
        return {}

    @abc.abstractmethod
    def encode(self, params: Any, key: jax.Array, images: jax.Array) -> jax.Array:
        """Maps a batch as the source delivers it to latents [B, h, w, c], float32."""

    @abc.abstractmethod
    def decode(self, params: Any, x: jax.Array) -> jax.Array:
        """Maps latents [B, h, w, c] to images [B, H, W, C] in [-1, 1], float32."""
