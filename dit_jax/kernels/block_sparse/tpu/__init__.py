"""Block-sparse attention as Mosaic kernels: keys and values of a head stay in VMEM."""

from typing import Any

import jax
import jax.numpy as jnp

from dit_jax.kernels.block_sparse.operands import CoarseKeys, KeyLists
from dit_jax.kernels.block_sparse.tpu.forward import attend
from dit_jax.kernels.block_sparse.tpu.key_gradient import key_gradient
from dit_jax.kernels.block_sparse.tpu.plan import flatten_coarse, make_plan
from dit_jax.kernels.block_sparse.tpu.query_gradient import query_gradient

# Bytes of two operands of one head, such as keys and values, that may stay in VMEM, beside tiles;
# of the patterns of masks; and of the lists in SMEM, which has 1 MiB.
_RESIDENT, _MASKS, _LISTS = 32 << 20, 8 << 20, 900 << 10

# Rows of a block are whole tiles of memory, also in bfloat16.
_SUBLANES = 16


def takes(q: jax.Array, k: jax.Array, lists: KeyLists) -> bool:
    """Whether the kernels take such a problem.

    A head's keys and values, its queries and their cotangents, and its lists must fit into the
    core's memories. Masks of blocks within regions are not implemented: they are those of grids
    that are not whole regions.
    """
    tokens, lanes = max(q.shape[2], k.shape[2]), -(-q.shape[3] // 128) * 128
    whole = lists.query_block % _SUBLANES == 0 and lists.key_block % _SUBLANES == 0
    if not whole or (lists.regions is not None and lists.masks is not None):
        return False
    plan = jax.eval_shape(make_plan, lists)
    # Two samples' or heads' lists are there at once: one in use and one that is read.
    heads = min(plan.entries.shape[0], 2)
    listed = heads * plan.entries.shape[1] * plan.listed * (1 if plan.masks is None else 2)
    masks = 0 if plan.masks is None else 2 * plan.masks.size * plan.masks.dtype.itemsize
    resident = 2 * tokens * lanes * q.dtype.itemsize
    return resident <= _RESIDENT and masks <= _MASKS and 4 * listed <= _LISTS


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lists: KeyLists,
    coarse: tuple[CoarseKeys, ...],
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Attention [B, H, N, D] and its log-sum-exp [B, H, N]."""
    flat = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    out, lse = attend(*flat, make_plan(lists), [flatten_coarse(c) for c in coarse], interpret)
    return out.reshape(q.shape), lse.reshape(q.shape[:3])


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lists: KeyLists,
    coarse: tuple[CoarseKeys, ...],
    out: jax.Array,
    lse: jax.Array,
    dout: jax.Array,
    dlse: jax.Array,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array, list]:
    """Gradients of q, k and v, and pairs of those of each set of coarse keys and values."""
    products = dout.astype(jnp.float32) * out.astype(jnp.float32)
    delta = products.sum(-1) - dlse
    q, k, v, dout = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v, dout))
    lse, delta = (x.reshape(len(q), -1) for x in (lse, delta))
    plan, flat = make_plan(lists), [flatten_coarse(c) for c in coarse]
    dq, *found = query_gradient(q, k, v, plan, flat, dout, lse, delta, interpret)
    dk, dv = key_gradient(q, k, v, plan, dout, lse, delta, interpret)
    lead = out.shape[:2]
    dq, dk, dv = (x.reshape(*lead, *x.shape[1:]) for x in (dq, dk, dv))
    pairs = [
        tuple(x[:, :, : c.k.shape[3]].astype(v.dtype).reshape(c.k.shape) for x in pair)
        for c, pair in zip(coarse, zip(found[::2], found[1::2], strict=True), strict=True)
    ]
    return dq, dk, dv, pairs
