"""Grouping-first attention (GRAT, arXiv 2505.14687)."""

import dataclasses
import functools
import math
from typing import Literal

import numpy as np

from dit_jax.attention.mixer import TokenMixer
from dit_jax.attention.sparse import in_cells, listed
from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class GRAT(TokenMixer):
    """All queries of a cell share the keys of some cells. Trained weights need no change.

    Source: GRAT (arXiv 2505.14687).

    Attributes:
      cell: tokens of a cell on each axis.
      pattern: cells that a cell sees: "cross", those with which it shares a row, a column or a
        frame of cells; "surround", its neighbours, itself and diagonal ones included.
    """

    cell: tuple[int, ...] = (16, 16)
    pattern: Literal["cross", "surround"] = "surround"

    def __call__(self, q, k, v, grid):
        if self.pattern not in ("cross", "surround"):
            raise InputError(f"GRAT's pattern is 'cross' or 'surround', not {self.pattern!r}")
        tokens = in_cells(q, k, v, grid, self.cell)
        visible = _visible(tokens.cells.counts, self.pattern)
        return tokens.finish(tokens.attend(listed(visible, math.prod(self.cell)))[0])


@functools.lru_cache(maxsize=32)
def _visible(counts: tuple[int, ...], pattern: str) -> np.ndarray:
    """Which cell sees which, [T, T] bool."""
    places = np.stack(np.unravel_index(np.arange(math.prod(counts)), counts), axis=-1)
    apart = np.abs(places[:, None] - places)
    return (apart == 0).any(-1) if pattern == "cross" else (apart <= 1).all(-1)
