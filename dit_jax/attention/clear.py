"""CLEAR's local attention (arXiv 2412.16112)."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np

from dit_jax.attention.mixer import TokenMixer
from dit_jax.attention.sparse import in_cells
from dit_jax.errors import InputError
from dit_jax.kernels.block_sparse import KeyLists
from dit_jax.kernels.cells import Cells


@dataclasses.dataclass(frozen=True)
class CLEAR(TokenMixer):
    """Each token sees those in a disc around it: dy^2 + dx^2 < radius^2, strictly.

    Source: CLEAR (arXiv 2412.16112). Its authors distil it from full attention and train the
    attention's projections alone; `training.distillation` trains all.

    Attributes:
      radius: of the disc (of a ball, on a grid with frames), in tokens.
      native_tokens: tokens that the weights were trained with: logits are scaled by
        sqrt(log(N) / log(native_tokens)) on top, N counting all tokens, as for high resolutions.
      tile: tokens of a block on each axis, a matter of speed alone.
    """

    radius: int = 16
    native_tokens: int | None = None
    tile: tuple[int, ...] = (16, 16)

    def __call__(self, q, k, v, grid):
        if self.radius < 1:
            raise InputError(f"CLEAR's radius is at least 1, not {self.radius}")
        if self.native_tokens is not None and self.native_tokens < 2:
            raise InputError(f"CLEAR's native tokens are at least 2, not {self.native_tokens}")
        if self.native_tokens is not None:
            gain = math.sqrt(math.log(q.shape[1]) / math.log(self.native_tokens))
            q = (q * gain).astype(q.dtype)
        tokens = in_cells(q, k, v, grid, self.tile)
        lists = disc(tokens.cells, self.radius)
        return tokens.finish(tokens.attend(lists)[0])


def disc(cells: Cells, radius: int) -> KeyLists:
    """For each cell the cells that its discs touch, with masks of who is in whose disc."""
    indices, ids, counts, masks = _disc_arrays(cells, radius)
    size = masks.shape[-1]
    return KeyLists(
        indices=jnp.asarray(indices),
        counts=jnp.asarray(counts),
        query_block=size,
        key_block=size,
        masks=jnp.asarray(masks),
        mask_ids=jnp.asarray(ids),
    )


@functools.lru_cache(maxsize=32)
def _disc_arrays(cells: Cells, radius: int) -> tuple[np.ndarray, ...]:
    size = math.prod(cells.sides[0])
    places = cells.coordinates.reshape(-1, size, len(cells.grid))
    valid = cells.valid.reshape(-1, size)
    masks, found, rows = [], {}, []
    for query in places:
        row = []
        # No token of a cell further off than this is within reach.
        near = np.abs(places[:, 0] - query[0]) < radius + np.array(cells.sides[0])
        for number in np.flatnonzero(near.all(1)):
            # Masks depend on where the cells lie to each other, and on what fills them up.
            kind = (*(places[number, 0] - query[0]), valid[number].tobytes())
            if kind not in found:
                distance = np.square(query[:, None] - places[number]).sum(-1)
                mask = (distance < radius**2) & valid[number]
                found[kind] = len(masks) if mask.any() else None
                masks += [mask] if mask.any() else []
            if found[kind] is not None:
                row.append((number, found[kind]))
        rows.append(row)
    counts = np.array([len(row) for row in rows], np.int32)
    entries = np.zeros((len(rows), counts.max(), 2), np.int32)
    for row, entry in zip(rows, entries, strict=True):
        entry[: len(row)] = row
    return entries[..., 0], entries[..., 1], counts, np.stack(masks)
