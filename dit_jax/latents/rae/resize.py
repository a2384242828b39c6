"""Bicubic resizing as PyTorch does it, which differs from `jax.image.resize` in coefficients."""

import jax
import jax.numpy as jnp
import numpy as np


def resize_bicubic(
    x: jax.Array, size: tuple[int, int], *, antialias: bool = False, offset: float = 0.0
) -> jax.Array:
    """Resizes as `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` does.

    Args:
      x: [..., H, W, C].
      size: new height and width, (h, w).
      antialias: widen the kernel when shrinking.
      offset: added to the new size where it tells the scale, as DINO's and DINOv2's own code does
        with 0.1 for position embeddings, by `scale_factor`.

    Returns:
      [..., h, w, C], float32.
    """
    rows, columns = (
        jnp.asarray(_weights(old, new, antialias, offset)) for old, new in zip(x.shape[-3:-1], size)
    )
    # Not in bfloat16, as a TPU multiplies by default.
    precision = jax.lax.Precision.HIGHEST
    x = jnp.einsum("...hwc,yh->...ywc", x.astype(jnp.float32), rows, precision=precision)
    return jnp.einsum("...ywc,xw->...yxc", x, columns, precision=precision)


def _weights(old: int, new: int, antialias: bool, offset: float) -> np.ndarray:
    """Share [new, old] that every old pixel has in every new one."""
    scale = old / (new + offset)
    centers = (np.arange(new) + 0.5) * scale - 0.5
    if antialias:
        distances = np.arange(old) - centers[:, None]
        weights = _keys_cubic(distances / max(scale, 1.0), -0.5)
        weights /= weights.sum(axis=1, keepdims=True)
        return weights.astype(np.float32)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        pixel = np.floor(centers) + tap
        inside = np.clip(pixel, 0, old - 1).astype(int)  # The border goes on for ever.
        np.add.at(weights, (np.arange(new), inside), _keys_cubic(pixel - centers, -0.75))
    return weights.astype(np.float32)


def _keys_cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' interpolation kernel (1981), whose `a` is -0.75 in PyTorch but -0.5 with antialias."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
