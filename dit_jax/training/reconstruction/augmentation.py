"""Differentiable augmentation of what a discriminator sees (DiffAugment, arXiv 2006.10738)."""

import jax
import jax.numpy as jnp

# Largest shift, over the side of an image.
_SHIFT = 0.125


def random_numbers(key: jax.Array, batch: int) -> jax.Array:
    """Draws what `diff_augment` needs, uniform in [0, 1), [5, B]."""
    return jax.random.uniform(key, (5, batch))


def diff_augment(images: jax.Array, numbers: jax.Array) -> jax.Array:
    """Moves images and changes their colours, each by its own random numbers.

    First they move, as in RAE's code; the colours of DiffAugment's own come first.

    Args:
      images: [B, H, W, C] in [-1, 1].
      numbers: [5, B] in [0, 1): shifts along height and width, brightness, saturation, contrast.
    """
    down, right, brightness, saturation, contrast = numbers
    images = jax.vmap(_translate)(images, down, right)
    images = images + _spread(brightness) - 0.5
    grey = images.mean(axis=-1, keepdims=True)
    images = (images - grey) * (2 * _spread(saturation)) + grey
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return (images - mean) * (_spread(contrast) + 0.5) + mean


def _translate(image: jax.Array, down: jax.Array, right: jax.Array) -> jax.Array:
    """Moves one image [H, W, C]; what comes in is grey, zero."""
    limits = [round(_SHIFT * side) for side in image.shape[:2]]
    padded = jnp.pad(image, [(limit, limit) for limit in limits] + [(0, 0)])
    starts = [
        jnp.floor(number * (2 * limit + 1)).astype(jnp.int32)
        for number, limit in zip((down, right), limits)
    ]
    return jax.lax.dynamic_slice(padded, (*starts, 0), image.shape)


def _spread(numbers: jax.Array) -> jax.Array:
    return numbers[:, None, None, None]
