"""Tokens of a grid in cells: an order in which neighbours lie together."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
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
    def padded(self) -> tuple[int, ...]:
        """The grid, filled up to whole cells."""
        spans = zip(self._spans(), self.sides[0], strict=True)
        return tuple(-(-span.stop // side) * side for span, side in spans)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of largest cells on each axis."""
        return tuple(n // s for n, s in zip(self.padded, self.sides[0], strict=True))

    @functools.cached_property
    def valid(self) -> np.ndarray:
        """Which tokens of the cells' order are the grid's, [N'] bool."""
        spans = zip(self._spans(), self.padded, strict=True)
        inside = [(np.arange(p) >= span.start) & (np.arange(p) < span.stop) for span, p in spans]
        return self._order(functools.reduce(np.logical_and.outer, inside)).reshape(-1)

    @functools.cached_property
    def coordinates(self) -> np.ndarray:
        """Place of each token of the cells' order in the padded grid, [N', axes] int."""
        places = np.stack(np.meshgrid(*map(np.arange, self.padded), indexing="ij"))
        return np.stack([self._order(axis).reshape(-1) for axis in places], axis=-1)

    def filled(self, level: int = -1) -> np.ndarray:
        """Tokens that each cell of a level holds, int."""
        return self.valid.reshape(-1, math.prod(self.sides[level])).sum(1)

    def split(self, x: jax.Array) -> jax.Array:
        """Tokens of the grid [B, N, H, D] in the cells' order, heads first: [B, H, N', D]."""
        batch, _, heads, width = x.shape
        x = x.reshape(batch, *self.grid, heads, width)
        spans = zip(self._spans(), self.padded, strict=True)
        surplus = [(span.start, p - span.stop) for span, p in spans]
        x = jnp.pad(x, [(0, 0), *surplus, (0, 0), (0, 0)])
        axes = range(1, len(self.grid) + 1)
        x = jnp.moveaxis(x, -2, 1)
        return self._order(x, tuple(axis + 1 for axis in axes)).reshape(batch, heads, -1, width)

    def join(self, x: jax.Array) -> jax.Array:
        """Back from [B, H, N', D] to tokens of the grid [B, N, H, D]."""
        batch, heads, _, width = x.shape
        split, order = self._factors(), self._permutation()
        x = x.reshape(batch, heads, *(split[i] for i in order), width)
        back = np.argsort(order)
        x = x.transpose(0, 1, *(back + 2), x.ndim - 1).reshape(batch, heads, *self.padded, width)
        x = x[:, :, *self._spans()]
        return jnp.moveaxis(x, 1, -2).reshape(batch, -1, heads, width)

    def _spans(self) -> list[slice]:
        """Where the grid lies on each axis of what is filled up."""
        lead = self.lead or (0,) * len(self.grid)
        return [slice(start, start + n) for start, n in zip(lead, self.grid, strict=True)]

    def _order(self, x, axes: tuple[int, ...] | None = None):
        """Splits and permutes the grid's axes of an array, which lie together."""
        first = axes[0] if axes else 0
        lead, rest = x.shape[:first], x.shape[first + len(self.grid) :]
        x = x.reshape(*lead, *self._factors(), *rest)
        middle = [first + i for i in self._permutation()]
        return x.transpose(*range(first), *middle, *range(first + len(middle), x.ndim))

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


def cell_means(x: jax.Array, filled: np.ndarray) -> jax.Array:
    """Means of cells' tokens [B, H, N', D], zero where there is none: [B, H, cells, D].

    Args:
      x: tokens in the cells' order, zero where the grid has none.
      filled: tokens that each cell holds.
    """
    parts = x.reshape(*x.shape[:2], len(filled), -1, x.shape[-1])
    sums = parts.astype(jnp.float32).sum(3)
    return (sums / np.maximum(filled, 1)[:, None]).astype(x.dtype)


def log_counts(filled: np.ndarray) -> np.ndarray:
    """Logarithms of the cells' tokens, -inf where there is none, float32."""
    return np.log(filled, out=np.full(len(filled), -np.inf, np.float32), where=filled > 0)
