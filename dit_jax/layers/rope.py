"""Rotary position embedding on two axes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class AxialRope:
    """Rotates pairs of neighbouring features by angles of the token's row and column.

    RoPE is arXiv 2104.09864; in two dimensions one half of a head's features turns with the row and
    one with the column (EVA-02, arXiv 2303.11331).

    Attributes:
      theta: base of the frequencies, theta^(-4 j / Dh) for j = 0 .. Dh / 4 - 1.
      interleaved: let column and row take turns from pair to pair, as DDT does; otherwise the first
        half of the features is the row's, as in LightningDiT and RAE.
      extent: position of the last row and column, of whatever grid; None counts 0, 1, 2, ...
    """

    theta: float = 10000.0
    interleaved: bool = False
    extent: float | None = None

    def __call__(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Rotates queries or keys [B, N, H, Dh] on a grid (rows, columns); angles are float32.

        Raises:
          InputError: the head size is no multiple of 4.
        """
        angles = jnp.asarray(self.angles(grid, x.shape[-1]))[:, None]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        first, second = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
        pairs = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
        return pairs.reshape(x.shape).astype(x.dtype)

    def angles(self, grid: tuple[int, int], head_dim: int) -> np.ndarray:
        """Angle of every pair of features, [N, Dh / 2], float32, tokens row-major."""
        if head_dim % 4:
            raise InputError(f"rotary embedding on two axes needs heads of 4 k, not {head_dim}")
        frequencies = self.theta ** (-4 * np.arange(head_dim // 4) / head_dim)
        rows, columns = np.meshgrid(*map(self._positions, grid), indexing="ij")
        row, column = (np.outer(p.ravel(), frequencies) for p in (rows, columns))
        if self.interleaved:
            angles = np.stack([column, row], axis=-1).reshape(len(row), -1)
        else:
            angles = np.concatenate([row, column], axis=-1)
        return angles.astype(np.float32)

    def _positions(self, size: int) -> np.ndarray:
        if self.extent is None:
            return np.arange(size, dtype=np.float64)
        return np.linspace(0, self.extent, size)
