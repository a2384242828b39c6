"""Resizing images as evaluators do it; FID is sensitive to how (arXiv 2104.11222)."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.latents.rae.resize import resize_bicubic


def resize_tf1(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """TensorFlow 1's `resize_bilinear`, which is part of the graph of FID's Inception-v3.

    Pixel i of the new image is at i * old / new of the old one, with no half-pixel centres and no
    antialias: a shrunk image is a sample of few of its pixels. In float32, and rounded as that
    operation rounds, whatever the compiler.

    Args:
      images: [B, H, W, C], values in [0, 255].
      size: new height and width, (h, w).

    Returns:
      [B, h, w, C], float32.
    """
    images = images.astype(jnp.float32)
    return _interpolate(_interpolate(images, size[1], axis=2), size[0], axis=1)


def resize_clean(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """clean-fid's way (arXiv 2104.11222): Pillow's bicubic, antialiased, a float32 channel a time.

    Args:
      images: [B, H, W, C], values in [0, 255].
      size: new height and width, (h, w).

    Returns:
      [B, h, w, C], float32, clipped to [0, 255] and not rounded.
    """
    return jnp.clip(resize_bicubic(images, size, antialias=True), 0, 255)


def resize_pillow(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Pillow's bicubic of images of bytes, which rounds to bytes after the columns and the rows.

    Args:
      images: [B, H, W, C], whole numbers in [0, 255].
      size: new height and width, (h, w).

    Returns:
      [B, h, w, C], whole numbers in [0, 255], float32.
    """
    for step in ((images.shape[1], size[1]), size):
        images = jnp.floor(resize_clean(images, step) + 0.5)
    return images


def _interpolate(x: jax.Array, new: int, axis: int) -> jax.Array:
    """Resizes one axis of values in [0, 255]."""
    old = x.shape[axis]
    places = np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new))
    lower = np.floor(places).astype(int)
    upper = np.minimum(lower + 1, old - 1)
    fraction = (places - lower.astype(np.float32)).reshape(-1, *[1] * (x.ndim - axis - 1))
    first, second = (jnp.take(x, index, axis=axis) for index in (lower, upper))
    # No product is outside this range. The clip keeps compilers from fusing it with the sum, which
    # would then be rounded once and not twice.
    return first + jnp.clip((second - first) * fraction, -255, 255)
