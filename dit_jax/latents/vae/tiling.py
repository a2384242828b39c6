"""Encoding and decoding large images tile by tile, in the memory of one tile.

The result is not that of the whole image at once. A tile sees nothing beyond its edges: there its
convolutions meet padding, its attention has fewer pixels to look at, and its group norms take the
statistics of the tile. The first shows near the edges alone, where blending gives a tile little
weight; the others may shift the tone of a whole tile, which blending turns from a step into a slope
`overlap` wide. Larger tiles come closer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.errors import InputError


def tiled_encode(
    encode: Callable[[jax.Array], Any],
    images: jax.Array,
    *,
    factor: int = 8,
    tile: int = 64,
    overlap: int = 16,
) -> Any:
    """Encodes images in overlapping tiles that are blended linearly.

    Args:
      encode: maps [B, factor * h, factor * w, C] to arrays [B, h, w, c], such as means and log
        variances, for h and w up to `tile`.
      images: [B, H, W, C]; H and W multiples of `factor`.
      factor: side of the square of pixels that becomes one pixel of the latent.
      tile: side of a tile, in pixels of the latent.
      overlap: how much neighbouring tiles share at least, in pixels of the latent.

    Returns:
      What `encode` would return for the whole image, arrays [B, H / factor, W / factor, c]; exactly
      that where the image is no larger than a tile.

    Raises:
      InputError: the image does not divide by `factor`, or tiles do not advance.
    """
    height, width = images.shape[1:3]
    if height % factor or width % factor:
        raise InputError(f"cannot tile images of {height}x{width}: not multiples of {factor}")
    return _tiled(encode, images, tile, overlap, factor, 1)


def tiled_decode(
    decode: Callable[[jax.Array], Any],
    latents: jax.Array,
    *,
    factor: int = 8,
    tile: int = 64,
    overlap: int = 16,
) -> Any:
    """Decodes latents in overlapping tiles that are blended linearly.

    Args:
      decode: maps [B, h, w, c] to images [B, factor * h, factor * w, C], for h and w up to `tile`.
      latents: [B, h, w, c].
      factor: side of the square of pixels that one pixel of the latent becomes.
      tile: side of a tile, in pixels of the latent.
      overlap: how much neighbouring tiles share at least, in pixels of the latent.

    Returns:
      Images [B, factor * h, factor * w, C]; exactly those of `decode` where the latent is no larger
      than a tile.

    Raises:
      InputError: tiles do not advance, or `decode` enlarges by another factor.
    """
    return _tiled(decode, latents, tile, overlap, 1, factor)


def tile_starts(length: int, tile: int, overlap: int) -> np.ndarray:
    """Where tiles begin that cover `length`: as few as will do, spread evenly, [tiles] int."""
    if length <= tile:
        return np.zeros(1, np.int64)
    last = -(-(length - tile) // (tile - overlap))
    return np.arange(last + 1) * (length - tile) // last


def blend_weights(starts: np.ndarray, length: int, tile: int, overlap: int) -> np.ndarray:
    """Weights of each tile's pixels, [tiles, tile] float32, which sum to 1 at every pixel.

    A weight falls linearly over the `overlap` pixels next to an edge, but not at the border of the
    whole, which is no edge of the tile's sight.
    """
    inside = np.arange(tile) + 0.5
    from_left = np.where(starts[:, None] == 0, tile, inside)
    from_right = np.where(starts[:, None] + tile == length, tile, tile - inside)
    weights = np.minimum(np.minimum(from_left, from_right), max(overlap, 1))
    places = starts[:, None] + np.arange(tile)
    total = np.zeros(length)
    np.add.at(total, places, weights)
    return (weights / total[places]).astype(np.float32)


def _tiled(
    apply: Callable[[jax.Array], Any],
    x: jax.Array,
    tile: int,
    overlap: int,
    fine: int,
    enlarge: int,
) -> Any:
    """Runs `apply` on tiles of `tile * fine` pixels, each of which becomes `tile * enlarge`."""
    if not 0 <= overlap < tile:
        raise InputError(f"tiles of {tile} cannot overlap by {overlap}: choose 0 to {tile - 1}")
    batch, *sides, channels = x.shape
    sides = [side // fine for side in sides]
    if max(sides) <= tile:
        return apply(x)
    tiles = [min(side, tile) for side in sides]
    starts = [tile_starts(side, tile, overlap) for side in sides]
    window = (batch, *(side * fine for side in tiles), channels)
    parts = jax.eval_shape(apply, jax.ShapeDtypeStruct(window, x.dtype))
    _check(parts, window, [side * enlarge for side in tiles])

    rows, columns = (
        blend_weights(first * enlarge, side * enlarge, length * enlarge, overlap * enlarge)
        for first, side, length in zip(starts, sides, tiles)
    )
    grid = np.indices((len(rows), len(columns))).reshape(2, -1)
    corners = np.stack([first[i] for first, i in zip(starts, grid)], axis=-1)

    def add_tile(total: Any, place: tuple[jax.Array, ...]) -> tuple[Any, None]:
        (top, left), row, column = place
        part = apply(jax.lax.dynamic_slice(x, (0, top * fine, left * fine, 0), window))
        weight = row[:, None, None] * column[:, None]
        corner = (0, top * enlarge, left * enlarge, 0)

        def add(total: jax.Array, part: jax.Array) -> jax.Array:
            before = jax.lax.dynamic_slice(total, corner, part.shape)
            return jax.lax.dynamic_update_slice(total, before + weight * part, corner)

        return jax.tree.map(add, total, part), None

    shape = (batch, *(side * enlarge for side in sides))
    nothing = jax.tree.map(lambda part: jnp.zeros((*shape, part.shape[-1])), parts)
    return jax.lax.scan(add_tile, nothing, (corners, rows[grid[0]], columns[grid[1]]))[0]


def _check(parts: Any, window: tuple[int, ...], expected: list[int]) -> None:
    for part in jax.tree.leaves(parts):
        if list(part.shape[1:3]) != expected:
            raise InputError(
                f"a tile of {window[1]}x{window[2]} became {part.shape[1]}x{part.shape[2]}, not "
                f"{expected[0]}x{expected[1]}: give the autoencoder's own factor"
            )
