"""The definition of block-sparse attention, with a dense mask: for tests and for reading."""

import jax
import jax.numpy as jnp

from dit_jax.kernels.block_sparse.operands import MASKED, CoarseKeys, KeyLists


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, lists: KeyLists, coarse: tuple[CoarseKeys, ...]
) -> tuple[jax.Array, jax.Array]:
    """Attention [B, H, N, D] and its log-sum-exp [B, H, N]."""
    batch, heads, queries, width = q.shape
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    seen = jnp.broadcast_to(_dense_mask(lists, k.shape[2]), logits.shape)
    logits, values = jnp.where(seen, logits * width**-0.5, MASKED), v[:, :, None]
    values = jnp.broadcast_to(values, (batch, heads, queries, *v.shape[2:]))
    for c in coarse:
        keys, extra = (jnp.repeat(x, queries // x.shape[2], 2) for x in (c.k, c.v))
        weight = jnp.maximum(c.log_weight, MASKED)
        weight = jnp.repeat(weight, queries // weight.shape[2], 2)
        more = jnp.einsum("bhqd,bhqcd->bhqc", q, keys, preferred_element_type=jnp.float32)
        logits = jnp.concatenate([logits, more * width**-0.5 + weight], axis=-1)
        values = jnp.concatenate([values, extra], axis=3)
    weights = jax.nn.softmax(logits, axis=-1)
    out = jnp.einsum("bhqk,bhqkd->bhqd", weights, values.astype(jnp.float32))
    return out.astype(v.dtype), jax.nn.logsumexp(logits, axis=-1)


def _dense_mask(lists: KeyLists, keys: int) -> jax.Array:
    """Which query sees which key, [1 or B, 1 or H, N, M] bool."""
    rows, columns, blocks = lists.query_block, lists.key_block, keys // lists.key_block
    one_hot = jax.nn.one_hot(lists.indices, blocks, dtype=jnp.int32)
    one_hot = one_hot * lists.listed()[..., None]
    if lists.masks is None:
        masks = jnp.ones((*lists.indices.shape, rows, columns), jnp.int32)
    else:
        masks = lists.masks[lists.mask_ids].astype(jnp.int32)
    mask = jnp.einsum("...qjk,...qjrc->...qrkc", one_hot, masks)
    mask = mask.reshape(*lists.indices.shape[:-2], -1, keys) > 0
    return mask if mask.ndim == 4 else mask[None, None]
