"""Cells by transpositions and sums of XLA, for any grid."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.kernels.cells.geometry import Cells


def split(x: jax.Array, cells: Cells, means: bool) -> tuple[jax.Array, ...]:
    """Tokens [B, H, N', D] in the cells' order, and means of the cells of each side."""
    batch, _, heads, width = x.shape
    x = x.reshape(batch, *cells.grid, heads, width)
    spans = zip(cells.spans, cells.padded, strict=True)
    surplus = [(span.start, p - span.stop) for span, p in spans]
    x = jnp.pad(x, [(0, 0), *surplus, (0, 0), (0, 0)])
    x = cells.reorder(jnp.moveaxis(x, -2, 1), 2).reshape(batch, heads, -1, width)
    levels = range(len(cells.sides)) if means else ()
    return x, *(_means(x, cells.filled(level)) for level in levels)


def join(x: jax.Array, cells: Cells) -> jax.Array:
    """Back from [B, H, N', D] to tokens of the grid [B, N, H, D]."""
    batch, heads, _, width = x.shape
    x = cells.restore(x, 2)[:, :, *cells.spans]
    return jnp.moveaxis(x, 1, -2).reshape(batch, -1, heads, width)


def _means(x: jax.Array, filled: np.ndarray) -> jax.Array:
    """Means of cells' tokens [B, H, N', D], zero where there is none: [B, H, cells, D]."""
    parts = x.reshape(*x.shape[:2], len(filled), -1, x.shape[-1])
    sums = parts.astype(jnp.float32).sum(3)
    return (sums / np.maximum(filled, 1)[:, None]).astype(x.dtype)
