"""Softmax attention in which every query sees every key.

XLA's einsums anywhere, cuDNN's kernel on NVIDIA GPUs, JAX's splash kernel on TPUs.
"""

import logging
from typing import Literal

import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.kernels.softmax_attention import cudnn, splash, xla
from dit_jax.kernels.softmax_attention.choice import choose, obstacle
from dit_jax.parallel.sharding import may_have_kernels, on_each_device

__all__ = ["Implementation", "choose", "softmax_attention"]

Implementation = Literal["auto", "xla", "cudnn", "splash"]

log = logging.getLogger(__name__)

# The compiler divides einsums and cuDNN's call over devices, but no Pallas kernel.
_FUNCTIONS = {
    "xla": xla.attention,
    "cudnn": cudnn.attention,
    "splash": on_each_device(splash.attention, "batch", None, "mixed_heads", None),
}


def softmax_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, implementation: Implementation = "auto"
) -> jax.Array:
    """Computes softmax(q k^T / sqrt(Dh)) v, softmax in float32.

    Args:
      q: queries [B, N, H, Dh].
      k: keys, likewise.
      v: values, likewise.
      implementation: what computes it; "auto" picks by platform, shape and dtype (`choose`).

    Returns:
      [B, N, H, Dh] in the dtype of `v`.

    Raises:
      InputError: the implementation cannot take these arrays, or is not to be had here.
    """
    dtype = jnp.result_type(q, k, v)
    if implementation == "auto":
        return _by_platform(q, k, v, dtype)
    wrong = obstacle(implementation, q.shape, dtype)
    if implementation == "cudnn" and not cudnn.here():
        wrong = "cuDNN's attention needs an NVIDIA GPU, and this process has none"
    if wrong:
        raise InputError(f"{wrong}: choose implementation 'auto' or 'xla'")
    return _FUNCTIONS[implementation](q, k, v)


# The platform that is lowered for decides, not the one that runs: programs for TPUs are compiled on
# machines that have none.
def _by_platform(q: jax.Array, k: jax.Array, v: jax.Array, dtype: jnp.dtype) -> jax.Array:
    picks = {platform: choose(platform, q.shape, dtype) for platform in _offered()}
    picks = {platform: pick for platform, pick in picks.items() if pick != "xla"}
    said = [f"{pick} on {platform}, else " for platform, pick in picks.items()]
    log.debug("softmax attention of %s %s: %sxla", dtype, q.shape, "".join(said))
    if not picks:
        return xla.attention(q, k, v)
    kernels = {platform: _FUNCTIONS[pick] for platform, pick in picks.items()}
    return jax.lax.platform_dependent(q, k, v, default=xla.attention, **kernels)


def _offered() -> list[str]:
    """Platforms whose own kernel can be in a program that is traced here and now."""
    tpu = ["tpu"] if may_have_kernels() else []
    return tpu + (["cuda"] if cudnn.here() else [])
