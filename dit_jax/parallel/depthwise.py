"""Depthwise convolution, also over devices."""

import jax

from dit_jax.parallel.sharding import constrain


def depthwise(images: jax.Array, kernel: jax.Array, channels: str) -> jax.Array:
    """Convolves each channel with its own window, zeros around the image.

    Samples and channels are laid out here, before and after, so that they share all devices: where
    some hold copies, XLA counts the kernel's gradient once a copy (jax 0.10 to 0.12).

    Args:
      images: [B, rows, columns, C].
      kernel: [side, side, 1, C].
      channels: logical name of the channels' axis.

    Returns:
      Like `images`.
    """
    axes = ("batch", "rows", "columns", channels)
    found = jax.lax.conv_general_dilated(
        constrain(images, *axes),
        kernel.astype(images.dtype),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )
    return constrain(found, *axes)
