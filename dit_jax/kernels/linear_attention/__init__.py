"""Linear attention: queries meet a summary of all keys and values, in time linear in the tokens.

On a TPU the Pallas kernels of `tpu.py`, which read and write every token once; elsewhere the
products of `xla.py`.
"""

import functools

import jax

from dit_jax.kernels.linear_attention import tpu, xla
from dit_jax.parallel.sharding import may_have_kernels

__all__ = ["linear_attention"]


def linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, offset: float = 0.0, eps: float = 1e-8
) -> jax.Array:
    """Computes phi(q) (phi(k)^T v) / (phi(q) . sum_t phi(k_t) + eps), phi(x) = relu(x) + offset.

    Other feature maps whose values are not negative, such as FLatten's focused one, are applied to
    `q` and `k` beforehand: the ReLU leaves them as they are. (The features are then written and
    read once more; a power and two norms are not fused into the kernels.)

    Args:
      q: queries [B, N, H, D], float32 or bfloat16.
      k: keys, likewise.
      v: values, likewise.
      offset: added to the features, at least 0; where it is 0, a query without a positive entry
        sees nothing.
      eps: added to the denominator, positive.

    Returns:
      [B, N, H, D] in the dtype of the arguments; sums over tokens are accumulated in float32.
    """
    return _attention(q, k, v, offset, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attention(q, k, v, offset, eps):
    return _forward(q, k, v, offset, eps)[0]


def _forward(q, k, v, offset, eps):
    out, state = _by_platform("forward", (q, k, v), offset, eps)
    return out, (q, k, v, state)


def _backward(offset, eps, saved, dout):
    return _by_platform("backward", (*saved, dout), offset, eps)


def _by_platform(name: str, arrays: tuple, offset: float, eps: float) -> tuple:
    """The platform that is lowered for decides, not the one that runs."""
    offered = {"tpu": tpu} if may_have_kernels() else {}
    functions = {
        platform: functools.partial(getattr(module, name), offset=offset, eps=eps)
        for platform, module in {**offered, "default": xla}.items()
    }
    return jax.lax.platform_dependent(*arrays, **functions)


_attention.defvjp(_forward, _backward)
