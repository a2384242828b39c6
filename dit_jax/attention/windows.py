"""Attention within windows that do not overlap (arXiv 2103.14030)."""

import dataclasses
import math

import jax.numpy as jnp

from dit_jax.attention.mixer import TokenMixer
from dit_jax.attention.sparse import in_cells
from dit_jax.kernels.block_sparse import KeyLists


@dataclasses.dataclass(frozen=True)
class Windows(TokenMixer):
    """A token sees those of its window; windows do not overlap, and cover the grid.

    Layers with shifted windows between others let neighbouring windows meet. Those at the grid's
    ends hold what is left of it. Source: Swin Transformer (arXiv 2103.14030), without its bias by
    relative position. (It rolls the grid around and hides what does not belong together: the
    windows are these.)

    Attributes:
      window: tokens of a window on each axis.
      shifted: whether windows begin half a window later, and one of that half comes before.
    """

    window: tuple[int, ...] = (8, 8)
    shifted: bool = False

    def __call__(self, q, k, v, grid):
        # Half a window of one token is none.
        lead = tuple(side - side // 2 if side > 1 else 0 for side in self.window)
        tokens = in_cells(q, k, v, grid, self.window, lead=lead if self.shifted else ())
        windows, size = math.prod(tokens.cells.counts), math.prod(self.window)
        lists = KeyLists(
            indices=jnp.arange(windows, dtype=jnp.int32)[:, None],
            counts=jnp.ones(windows, jnp.int32),
            query_block=size,
            key_block=size,
        )
        return tokens.finish(tokens.attend(lists)[0])
