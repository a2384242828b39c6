"""Softmax attention by JAX's splash kernel (FlashAttention-2, arXiv 2307.08691), on TPUs."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

# Queries and keys a grid step. The kernel's own default of 128 takes seven times the cycles of
# 1024; blocks of 2048 do not fit into the memory that a v5e's core gives a kernel.
_LARGEST_BLOCK = 1024
_LANES = 128


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Mixes values [B, N, H, Dh] in their dtype.

    Args:
      q: queries [B, N, H, Dh].
      k: keys, likewise.
      v: values, likewise.
      interpret: run the kernel step by step on any platform, for tests.
    """
    tokens, heads, width = q.shape[1:]
    block = block_size(tokens)
    extra = -tokens % block
    # The kernel does not scale. A scale rounded to bfloat16 would be off the same way everywhere.
    q = (q.astype(jnp.float32) * width**-0.5).astype(q.dtype)
    q, k, v = (_pad(x.swapaxes(1, 2), extra) for x in (q, k, v))
    kernel = _kernel(heads, tokens + extra, block, interpret)
    mixed = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, _segments(tokens, extra))
    return mixed[:, :, :tokens].swapaxes(1, 2)


def block_size(tokens: int) -> int:
    """The fewest equal blocks, of whole lanes, that hold all tokens."""
    blocks = -(-tokens // _LARGEST_BLOCK)
    return -(-tokens // (blocks * _LANES)) * _LANES


def _pad(x: jax.Array, extra: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0)))


def _segments(tokens: int, extra: int) -> splash_attention_kernel.SegmentIds | None:
    """Hides padded keys. Padded queries see all others: a softmax over nothing is not defined."""
    if not extra:
        return None
    keys = (jnp.arange(tokens + extra) >= tokens).astype(jnp.int32)
    return splash_attention_kernel.SegmentIds(q=jnp.zeros_like(keys), kv=keys)


def _kernel(heads: int, tokens: int, block: int, interpret: bool):
    mask = splash_attention_mask.FullMask((tokens, tokens))
    return splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        interpret=interpret,
    )
