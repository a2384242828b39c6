"""Block-sparse attention by gathers of key blocks, in plain XLA: for a CPU and whatever else."""

import math

import jax
import jax.numpy as jnp

from dit_jax.kernels.block_sparse.operands import MASKED, CoarseKeys, KeyLists

# Scores and gathered features that are in memory at once, of all samples and heads; or of as many
# query blocks as can be told apart by a divisor of their number.
_ELEMENTS = 1 << 24


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, lists: KeyLists, coarse: tuple[CoarseKeys, ...]
) -> tuple[jax.Array, jax.Array]:
    """Attention [B, H, N, D] and its log-sum-exp [B, H, N], some query blocks at a time."""
    batch, heads, queries, _ = q.shape
    keys, values = (x.reshape(batch, heads, -1, lists.key_block, x.shape[-1]) for x in (k, v))
    chunks = _chunks(q, lists, coarse)

    def split(x: jax.Array, axis: int) -> jax.Array:
        """Chunks of an axis, as a new axis 0."""
        x = x.reshape(*x.shape[:axis], chunks, -1, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    @jax.checkpoint
    def chunk(scanned: tuple) -> tuple[jax.Array, jax.Array]:
        q, entries, own = scanned
        # What serves all queries is not cut up.
        seen = jax.tree.map(lambda x, part: x if part is None else part, coarse, own)
        return _chunk(q, entries, seen, keys, values, lists)

    entries = lists.indices, lists.listed(), lists.mask_ids
    entries = jax.tree.map(lambda x: split(x, x.ndim - 2), entries)
    own = jax.tree.map(lambda x: split(x, 2) if x.shape[2] > 1 else None, coarse)
    out, lse = jax.lax.map(chunk, (split(q, 2), entries, own))
    out, lse = jnp.moveaxis(out, 0, 2), jnp.moveaxis(lse, 0, 2)
    return out.reshape(*q.shape[:3], -1).astype(v.dtype), lse.reshape(q.shape[:3])


def _chunks(q: jax.Array, lists: KeyLists, coarse: tuple[CoarseKeys, ...]) -> int:
    """In how many parts the queries are taken, to bound what is in memory at once.

    Parts are whole groups, so that each reads its coarse keys once.
    """
    units, listed = lists.indices.shape[-2:]
    keys = listed * lists.key_block * (1 + 2 * q.shape[3] // lists.query_block)
    groups = [x.shape[2] for c in coarse for x in (c.k, c.log_weight) if x.shape[2] > 1]
    keys, units = keys + sum(c.k.shape[3] for c in coarse), math.gcd(units, *groups)
    wanted = min(units, -(-q.shape[0] * q.shape[1] * q.shape[2] * keys // _ELEMENTS))
    return next(n for n in range(wanted, units + 1) if units % n == 0)


def _chunk(q, entries, coarse, keys, values, lists) -> tuple[jax.Array, jax.Array]:
    """Attention of the queries [B, H, n, D] of some blocks."""
    indices, listed, mask_ids = entries
    batch, heads, rows, width = q.shape
    scale = width**-0.5
    queries = q.reshape(batch, heads, -1, lists.query_block, width)
    k, v = _blocks(keys, indices), _blocks(values, indices)
    logits = jnp.where(_seen(listed, mask_ids, lists), scale * _products(queries, k), MASKED)
    logits = [logits.reshape(batch, heads, rows, -1)]
    for c in coarse:
        found = scale * _products(_grouped(q, c.k), c.k)
        weight = jnp.maximum(c.log_weight, MASKED)
        weight = jnp.repeat(weight, rows // weight.shape[2], axis=2)
        logits.append(found.reshape(batch, heads, rows, -1) + weight)
    lse = jax.nn.logsumexp(jnp.concatenate(logits, axis=-1), axis=-1)
    mixed = 0.0
    for part, found in zip(logits, (v, *(c.v for c in coarse)), strict=True):
        weights = jnp.exp(part - lse[..., None]).astype(v.dtype)
        products = _products(_grouped(weights, found), found.swapaxes(-1, -2))
        mixed += products.reshape(q.shape)
    return mixed, lse


def _grouped(x: jax.Array, groups: jax.Array) -> jax.Array:
    """Rows [B, H, n, .] in as many groups as `groups` [B, H, G, ...] has: [B, H, G, n / G, .]."""
    return x.reshape(*x.shape[:2], groups.shape[2], -1, x.shape[-1])


def _products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Products of the rows [..., n, D] and [..., m, D] of each group, [..., n, m] float32."""
    return jnp.einsum("...nd,...md->...nm", x, y, preferred_element_type=jnp.float32)


def _blocks(x: jax.Array, indices: jax.Array) -> jax.Array:
    """The listed blocks of [B, H, NK, size, D], joined: [B, H, NQ, K size, D]."""
    if indices.ndim == 2:
        found = x[:, :, indices]
    else:
        found = jax.vmap(jax.vmap(lambda x, i: x[i]))(x, indices)
    return found.reshape(*found.shape[:3], -1, x.shape[-1])


def _seen(listed: jax.Array, mask_ids: jax.Array | None, lists: KeyLists) -> jax.Array:
    """Which keys of its list each query sees, [..., NQ, 1 or query_block, K key_block] bool."""
    if mask_ids is None:
        return jnp.repeat(listed, lists.key_block, axis=-1)[..., None, :]
    masks = lists.masks[mask_ids] & listed[..., None, None]
    masks = jnp.moveaxis(masks, -2, -3)
    return masks.reshape(*masks.shape[:-2], -1)
