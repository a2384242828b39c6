"""Sliding tile attention (arXiv 2502.04507)."""

import dataclasses
import functools
import math

import numpy as np

from dit_jax.attention.mixer import TokenMixer
from dit_jax.attention.sparse import in_cells, listed
from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TileWindow(TokenMixer):
    """A window that slides by whole tiles: no tile of queries meets half a tile of keys.

    At the grid's border the window moves inwards and stays full. Source: sliding tile attention
    (STA, arXiv 2502.04507).

    Attributes:
      tile: tokens of a tile on each axis.
      window: tiles of a window on each axis, odd numbers; a grid of fewer is seen whole.
    """

    tile: tuple[int, ...] = (8, 8)
    window: tuple[int, ...] = (3, 3)

    def __call__(self, q, k, v, grid):
        if len(self.window) != len(grid) or not all(n > 0 and n % 2 for n in self.window):
            raise InputError(
                f"a window has an odd number of tiles on each of the {len(grid)} axes, "
                f"not {self.window}"
            )
        tokens = in_cells(q, k, v, grid, self.tile)
        visible = _visible(tokens.cells.counts, self.window)
        return tokens.finish(tokens.attend(listed(visible, math.prod(self.tile)))[0])


@functools.lru_cache(maxsize=32)
def _visible(counts: tuple[int, ...], window: tuple[int, ...]) -> np.ndarray:
    """Which tile sees which, [T, T] bool."""
    places = np.unravel_index(np.arange(math.prod(counts)), counts)
    visible = np.ones((math.prod(counts),) * 2, bool)
    for place, count, size in zip(places, counts, window, strict=True):
        size = min(size, count)
        first = np.clip(place - size // 2, 0, count - size)[:, None]
        visible &= (place >= first) & (place < first + size)
    return visible
