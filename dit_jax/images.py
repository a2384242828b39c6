"""Samples as bytes and as files."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image


def to_uint8(images: jax.Array) -> jax.Array:
    """Maps images in [-1, 1] to bytes as DiT does: clamp(127.5 x + 128, 0, 255), truncated."""
    return jnp.clip(127.5 * images + 128, 0, 255).astype(jnp.uint8)


def grid(images: np.ndarray, columns: int | None = None, pad: int = 2) -> np.ndarray:
    """Lays uint8 images [N, H, W, C] out row by row as one [H', W', C], on white.

    Args:
      images: what to show.
      columns: images in a row; about as many as rows by default.
      pad: pixels between images.
    """
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + pad) + pad, columns * (width + pad) + pad, channels), 255, np.uint8
    )
    for i, image in enumerate(images):
        top = pad + (i // columns) * (height + pad)
        left = pad + (i % columns) * (width + pad)
        canvas[top : top + height, left : left + width] = image
    return canvas


def save_grid(path: pathlib.Path, images: np.ndarray, columns: int | None = None) -> None:
    """Writes a grid as PNG; images under 64 pixels are enlarged, with sharp edges."""
    picture = grid(images, columns)
    factor = max(1, 64 // images.shape[1])
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    if picture.shape[-1] == 1:
        picture = picture[..., 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
