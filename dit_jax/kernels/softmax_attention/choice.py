"""Which implementation of softmax attention suits which arrays on which platform."""

from typing import Any, Literal

import jax.numpy as jnp

Choice = Literal["xla", "cudnn", "splash"]

# Tokens from which splash attention is worth it on a TPU. It saves the weights' traffic, which
# grows with N^2, and costs copies into its layout, which grow with N: at N = 256 they cost more
# than it saves; at 1024 the weights of one head are 4 MiB, more than ten times its queries, keys
# and values together.
SPLASH_TOKENS = 1024

# Wider is an autoencoder's single head of 512: no mesh can divide it over a tensor axis, as the
# kernel would have to be, and it is a small share of the work.
SPLASH_HEAD = 256

# GPUs before Hopper take no larger heads.
_CUDNN_HEAD = 128


def choose(platform: str, shape: tuple[int, ...], dtype: Any) -> Choice:
    """Picks the implementation that "auto" takes.

    Args:
      platform: the platform that is lowered for: "cpu", "cuda", "rocm" or "tpu".
      shape: [B, N, H, Dh] of queries, keys and values.
      dtype: their dtype.
    """
    worthwhile = shape[1] >= SPLASH_TOKENS and shape[-1] <= SPLASH_HEAD
    if platform == "tpu" and worthwhile and not obstacle("splash", shape, dtype):
        return "splash"
    if platform == "cuda" and not obstacle("cudnn", shape, dtype):
        return "cudnn"
    return "xla"


def obstacle(choice: Choice, shape: tuple[int, ...], dtype: Any) -> str | None:
    """Says why an implementation cannot take such arrays, or None if it can."""
    dtype, head = jnp.dtype(dtype).name, shape[-1]
    if choice == "cudnn" and dtype not in ("bfloat16", "float16"):
        return f"cuDNN's attention computes in bfloat16 or float16, not in {dtype}"
    if choice == "cudnn" and (head % 8 or head > _CUDNN_HEAD):
        return f"cuDNN's attention takes heads of 8, 16, ... {_CUDNN_HEAD}, not of {head}"
    if choice == "splash" and dtype not in ("bfloat16", "float32"):
        return f"splash attention computes in bfloat16 or float32, not in {dtype}"
    return None
