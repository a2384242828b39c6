"""What the sparse mechanisms share: prefix tokens, cells that are not full, lists known ahead."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.errors import InputError
from dit_jax.kernels.block_sparse import (
    CoarseKeys,
    KeyLists,
    block_sparse_attention,
)
from dit_jax.kernels.cells import Cells, join, split
from dit_jax.kernels.softmax_attention import softmax_attention


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Queries, keys and values of one call: prefix and grid apart, the grid's in cells.

    Tokens before those of the grid, such as text or registers, see all and are seen by all.

    Attributes:
      cells: the grid's cells.
      everything: all queries, keys and values, [B, N, H, D].
      q: the grid's queries in the cells' order, [B, H, N', D].
      k: its keys, likewise.
      v: its values, likewise.
      means: where asked for, means of queries, keys and values [B, H, cells, D], of each level.
    """

    cells: Cells
    everything: tuple[jax.Array, jax.Array, jax.Array]
    q: jax.Array
    k: jax.Array
    v: jax.Array
    means: list[tuple[jax.Array, jax.Array, jax.Array]]

    def attend(self, lists: KeyLists, *coarse: CoarseKeys) -> tuple[jax.Array, jax.Array]:
        """The grid's mixed values [B, H, N', D] and log-sum-exp [B, H, N'], prefix keys included.

        Lists whose masks are not set get those that hide what fills up the cells.
        """
        if lists.masks is None and not self.cells.valid.all():
            lists = _hide_padding(lists, self.cells)
        return block_sparse_attention(self.q, self.k, self.v, lists, *self._prefix_keys(), *coarse)

    def finish(self, mixed: jax.Array) -> jax.Array:
        """All tokens' mixed values [B, N, H, D], from those of the grid in the cells' order."""
        return prepend_prefix(join(mixed, self.cells), *self.everything)

    def _prefix_keys(self) -> tuple[CoarseKeys, ...]:
        _, k, v = self.everything
        return prefix_keys(k, v, k.shape[1] - math.prod(self.cells.grid))


def prefix_keys(k: jax.Array, v: jax.Array, count: int) -> tuple[CoarseKeys, ...]:
    """The first `count` tokens as a set of keys, each counting as one; or no set."""
    if count == 0:
        return ()
    k, v = (x[:, :count].swapaxes(1, 2)[:, :, None] for x in (k, v))
    return (CoarseKeys(k, v, jnp.zeros((1, 1, 1, count), jnp.float32)),)


def prepend_prefix(mixed: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """All tokens' mixed values, of the grid's, which come last; those before see everything."""
    prefix = q.shape[1] - mixed.shape[1]
    if prefix == 0:
        return mixed
    dense = softmax_attention(q[:, :prefix], k, v, "xla")
    return jnp.concatenate([dense, mixed], axis=1)


def in_cells(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    grid: tuple[int, ...],
    *sides: tuple[int, ...],
    lead: tuple[int, ...] = (),
    means: bool = False,
) -> Tokens:
    """Tokens [B, N, H, D] whose last are those of the grid, cut into cells of such sides.

    The first cells lack `lead` tokens on each axis.

    Raises:
      InputError: there are fewer tokens than the grid has, or the sides do not fit it.
    """
    if q.shape[1] < math.prod(grid):
        raise InputError(f"{q.shape[1]} tokens do not fill a grid of {grid}")
    cells, first = Cells(tuple(grid), sides, lead), q.shape[1] - math.prod(grid)
    parts = (split(x[:, first:], cells, means) for x in (q, k, v))
    tokens, *levels = zip(*parts, strict=True)
    return Tokens(cells, (q, k, v), *tokens, levels)


def log_counts(filled: np.ndarray) -> np.ndarray:
    """Logarithms of the cells' tokens, -inf where there is none, float32."""
    return np.log(filled, out=np.full(len(filled), -np.inf, np.float32), where=filled > 0)


def listed(visible: np.ndarray, block: int) -> KeyLists:
    """Lists known ahead, of which block sees which, [blocks, blocks] bool."""
    counts = visible.sum(1)
    # Stable, so that what is seen comes first and in order.
    indices = np.argsort(~visible, axis=1, kind="stable")[:, : counts.max()]
    return KeyLists(
        indices=jnp.asarray(indices, jnp.int32),
        counts=jnp.asarray(counts, jnp.int32),
        query_block=block,
        key_block=block,
    )


def _hide_padding(lists: KeyLists, cells: Cells) -> KeyLists:
    """The lists, with a mask for each way in which a block of keys is filled."""
    patterns, kinds = np.unique(
        cells.valid.reshape(-1, lists.key_block), axis=0, return_inverse=True
    )
    masks = np.broadcast_to(patterns[:, None], (len(patterns), lists.query_block, lists.key_block))
    ids = jnp.asarray(kinds.reshape(-1), jnp.int32)[lists.indices]
    return dataclasses.replace(lists, masks=jnp.asarray(masks), mask_ids=ids)
