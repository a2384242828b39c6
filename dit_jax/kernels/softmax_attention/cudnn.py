"""Softmax attention by cuDNN, on NVIDIA GPUs."""

import jax


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Mixes values [B, N, H, Dh] in their dtype; cannot even be lowered without a GPU."""
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def here() -> bool:
    """Whether this process has a GPU that cuDNN runs on."""
    devices = jax.devices() if jax.default_backend() == "gpu" else []
    return any("cuda" in device.client.platform_version for device in devices)
