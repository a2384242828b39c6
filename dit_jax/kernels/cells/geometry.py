"""A grid cut into cells, and the order of its tokens in which those of a cell lie together."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Cells:
    """A grid cut into equal cells, and those again; cells at its ends are filled up with nothing.

    Tokens of a cell lie together, those of its smaller cells too, each row-major. (Blocks of a
    Z-order are such cells: within them the order makes no difference to an attention.)

    Attributes:
      grid: tokens on each axis.
      sides: shapes of the cells, larger before smaller; each divides the one before.
      lead: what the first cells lack on each axis, in tokens; nothing, if it is not given.
    """

    grid: tuple[int, ...]
    sides: tuple[tuple[int, ...], ...]
    lead: tuple[int, ...] = ()

    def __post_init__(self):
        outer = self.sides[0]
        for side in self.sides:
            if len(side) != len(self.grid) or min(side) < 1:
                raise InputError(f"cells of {side} do not fit a grid of {self.grid}")
            if any(large % small for large, small in zip(outer, side, strict=True)):
                raise InputError(f"cells of {side} do not divide cells of {outer}")
            outer = side

    @property
    def spans(self) -> tuple[slice, ...]:
        """Where the grid lies on each axis of what is filled up."""
        lead = self.lead or (0,) * len(self.grid)
        return tuple(slice(start, start + n) for start, n in zip(lead, self.grid, strict=True))

    @property
    def padded(self) -> tuple[int, ...]:
        """The grid, filled up to whole cells."""
        spans = zip(self.spans, self.sides[0], strict=True)
        return tuple(-(-span.stop // side) * side for span, side in spans)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of largest cells on each axis."""
        return tuple(n // s for n, s in zip(self.padded, self.sides[0], strict=True))

    @functools.cached_property
    def valid(self) -> np.ndarray:
        """Which tokens of the cells' order are the grid's, [N'] bool."""
        spans = zip(self.spans, self.padded, strict=True)
        inside = [(np.arange(p) >= span.start) & (np.arange(p) < span.stop) for span, p in spans]
        return self.reorder(functools.reduce(np.logical_and.outer, inside)).reshape(-1)

    @functools.cached_property
    def coordinates(self) -> np.ndarray:
        """Place of each token of the cells' order in the padded grid, [N', axes] int."""
        places = np.stack(np.meshgrid(*map(np.arange, self.padded), indexing="ij"))
        return np.stack([self.reorder(axis).reshape(-1) for axis in places], axis=-1)

    def filled(self, level: int = -1) -> np.ndarray:
        """Tokens that each cell of a level holds, int."""
        return self.valid.reshape(-1, math.prod(self.sides[level])).sum(1)

    def reorder(self, x: Any, first: int = 0) -> Any:
        """Splits and permutes the axes of the padded grid, which begin at `first`."""
        lead, rest = x.shape[:first], x.shape[first + len(self.grid) :]
        x = x.reshape(*lead, *self._factors(), *rest)
        middle = [first + i for i in self._permutation()]
        return x.transpose(*range(first), *middle, *range(first + len(middle), x.ndim))

    def restore(self, x: Any, first: int = 0) -> Any:
        """Makes axis `first`, tokens in the cells' order, the axes of the padded grid again."""
        lead, rest = x.shape[:first], x.shape[first + 1 :]
        factors, order = self._factors(), self._permutation()
        x = x.reshape(*lead, *(factors[i] for i in order), *rest)
        middle = [first + int(i) for i in np.argsort(order)]
        x = x.transpose(*range(first), *middle, *range(first + len(middle), x.ndim))
        return x.reshape(*lead, *self.padded, *rest)

    def _factors(self) -> list[int]:
        """Each axis as (cells, smaller cells in a cell, ..., tokens in the smallest)."""
        factors = []
        for axis, length in enumerate(self.padded):
            for side in self.sides:
                factors.append(length // side[axis])
                length = side[axis]
            factors.append(length)
        return factors

    def _permutation(self) -> list[int]:
        """Factors of all axes by level, the largest cells first."""
        levels = len(self.sides) + 1
        return [axis * levels + level for level in range(levels) for axis in range(len(self.grid))]
