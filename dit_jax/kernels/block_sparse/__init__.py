"""Attention of each block of queries over a list of key blocks, and over weighted coarse keys.

The one kernel under the sparse attention mechanisms: a Mosaic kernel on TPUs, for as many tokens as
fit into their memory, and gathers of XLA elsewhere.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dit_jax.kernels.block_sparse import gather, tpu
from dit_jax.kernels.block_sparse.operands import CoarseKeys, KeyLists
from dit_jax.parallel.sharding import current_layout, may_have_kernels

__all__ = ["CoarseKeys", "KeyLists", "block_sparse_attention"]


def block_sparse_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lists: KeyLists,
    *coarse: CoarseKeys,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention of queries over the keys that their block lists, and over coarse keys.

    out_i = (sum_j e^(s q_i k_j) v_j + sum_c w_c e^(s q_i k'_c) v'_c) / (the same with v = v' = 1),
    s = 1 / sqrt(D), softmax and sums in float32.

    Args:
      q: queries [B, H, N, D], N a multiple of the query block.
      k: keys [B, H, M, D], M a multiple of the key block.
      v: values, likewise.
      lists: key blocks of each query block.
      *coarse: further keys with weights, seen by groups of queries.

    Returns:
      The mixed values [B, H, N, D] in the dtype of `v`, and the log-sum-exp of each query's logits
      [B, H, N] in float32. Both are differentiable by q, k, v and the coarse keys and values. A
      query must see something, or its result is of no account.

    Raises:
      InputError: the lists or coarse keys do not fit the queries and keys.
    """
    lists.check(q.shape[2], k.shape[2])
    for keys in coarse:
        keys.check(lists.indices.shape[-2])
    operands = q, k, v, lists, coarse
    layout = current_layout()
    if layout is None:
        return _attention(*operands)
    # Each device has its own samples and heads; a kernel cannot be divided by the compiler.
    per_head = layout.sharding(("batch", "mixed_heads"), q.shape[:2]).spec
    return jax.shard_map(
        _attention,
        mesh=layout.mesh,
        in_specs=(per_head, per_head, per_head, *_specs(lists, coarse, per_head)),
        out_specs=(per_head, per_head),
        check_vma=False,
    )(*operands)


def _specs(lists: KeyLists, coarse: tuple[CoarseKeys, ...], per_head: PartitionSpec) -> tuple:
    """How lists and coarse keys are divided: those of each head, but not what serves all."""
    own = per_head if lists.indices.ndim == 4 else PartitionSpec()
    lists = jax.tree.map(lambda _: own, lists)
    if lists.masks is not None:
        lists = dataclasses.replace(lists, masks=PartitionSpec())
    weights = [c.log_weight.shape[:2] for c in coarse]
    weights = [PartitionSpec() if shape == (1, 1) else per_head for shape in weights]
    return lists, tuple(CoarseKeys(per_head, per_head, weight) for weight in weights)


@jax.custom_vjp
def _attention(q, k, v, lists, coarse):
    return _forward(q, k, v, lists, coarse)[0]


def _offered(q: jax.Array, k: jax.Array, lists: KeyLists) -> bool:
    """Whether a program that is traced here may have the TPU's kernel."""
    return may_have_kernels() and tpu.takes(q, k, lists)


def _forward(q, k, v, lists, coarse):
    # The platform that is lowered for decides, not the one that runs: programs for TPUs are
    # compiled on machines that have none.
    operands = q, k, v, lists, coarse
    kernels = {"tpu": tpu.forward} if _offered(q, k, lists) else {}
    out, lse = jax.lax.platform_dependent(*operands, **kernels, default=gather.forward)
    return (out, lse), (*operands, out, lse)


def _backward(saved, cotangents):
    q, k, v, lists, coarse, *results = saved

    def by_gathers(q, k, v, lists, coarse, out, lse, dout, dlse):
        def function(q, k, v, pairs):
            own = [CoarseKeys(*pair, c.log_weight) for pair, c in zip(pairs, coarse, strict=True)]
            return gather.forward(q, k, v, lists, tuple(own))

        return jax.vjp(function, q, k, v, [(c.k, c.v) for c in coarse])[1]((dout, dlse))

    operands = q, k, v, lists, coarse, *results, *cotangents
    kernels = {"tpu": tpu.backward} if _offered(q, k, lists) else {}
    dq, dk, dv, pairs = jax.lax.platform_dependent(*operands, **kernels, default=by_gathers)
    weights = [jnp.zeros_like(c.log_weight) for c in coarse]
    dcoarse = tuple(CoarseKeys(*pair, w) for pair, w in zip(pairs, weights, strict=True))
    return dq, dk, dv, None, dcoarse


_attention.defvjp(_forward, _backward)
