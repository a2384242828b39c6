"""The signature that all attention mechanisms share."""

import abc
import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class TokenMixer(abc.ABC):
    """A rule for which tokens see which; its fields are its configuration.

    A mechanism that learns something is a Flax module with the same call, and is registered as one
    of these (`@TokenMixer.register`): a module cannot inherit from a frozen dataclass.
    """

    @abc.abstractmethod
    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, grid: tuple[int, ...]
    ) -> jax.Array:
        """Mixes values by queries and keys.

        Args:
          q: queries [B, N, H, Dh], after projection, norm and position encoding.
          k: keys, likewise.
          v: values, likewise.
          grid: static token grid, (rows, columns) or (frames, rows, columns), row-major.

        Returns:
          [B, N, H, Dh] in the dtype of `v`.
        """
