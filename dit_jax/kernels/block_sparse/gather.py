"""Block-sparse attention by gathers of key blocks, in plain XLA: for a CPU and whatever else."""

import jax
import jax.numpy as jnp

from dit_jax.kernels.block_sparse.operands import MASKED, CoarseKeys, KeyLists

# Scores and gathered features that are in memory at once, of all samples and heads; or of as many
# query blocks as can be told apart by a divisor of their number.
_ELEMENTS = 1 << 24


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, lists: KeyLists, coarse: CoarseKeys | None
) -> tuple[jax.Array, jax.Array]:
    """Attention [B, H, N, D] and its log-sum-exp [B, H, N], some query blocks at a time."""
    batch, heads, queries, _ = q.shape
    keys, values = (x.reshape(batch, heads, -1, lists.key_block, x.shape[-1]) for x in (k, v))
    chunks = _chunks(q, lists, coarse)

    def split(x: jax.Array, axis: int) -> jax.Array:
        """Chunks of an axis, as a new axis 0; what serves all queries serves each chunk."""
        if x.shape[axis] == 1:
            return jnp.broadcast_to(x, (chunks, *x.shape))
        x = x.reshape(*x.shape[:axis], chunks, -1, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    @jax.checkpoint
    def chunk(scanned: tuple) -> tuple[jax.Array, jax.Array]:
        return _chunk(*scanned, keys, values, lists)

    entries = lists.indices, lists.listed(), lists.mask_ids
    entries = jax.tree.map(lambda x: split(x, x.ndim - 2), entries)
    coarse = jax.tree.map(lambda x: split(x, 2), coarse)
    out, lse = jax.lax.map(chunk, (split(q, 2), entries, coarse))
    out, lse = jnp.moveaxis(out, 0, 2), jnp.moveaxis(lse, 0, 2)
    return out.reshape(*q.shape[:3], -1).astype(v.dtype), lse.reshape(q.shape[:3])


def _chunks(q: jax.Array, lists: KeyLists, coarse: CoarseKeys | None) -> int:
    """In how many parts the queries are taken, to bound what is in memory at once.

    Parts are whole groups, so that each reads its coarse keys once.
    """
    units, listed = lists.indices.shape[-2:]
    keys = listed * lists.key_block * (1 + 2 * q.shape[3] // lists.query_block)
    if coarse is not None:
        keys += coarse.k.shape[3]
        units = next((n for n in (coarse.k.shape[2], coarse.log_weight.shape[2]) if n > 1), units)
    wanted = min(units, -(-q.shape[0] * q.shape[1] * q.shape[2] * keys // _ELEMENTS))
    return next(n for n in range(wanted, units + 1) if units % n == 0)


def _chunk(q, entries, coarse, keys, values, lists) -> tuple[jax.Array, jax.Array]:
    """Attention of the queries [B, H, n, D] of some blocks."""
    indices, listed, mask_ids = entries
    batch, heads, rows, width = q.shape
    scale, size = width**-0.5, lists.query_block
    queries = q.reshape(batch, heads, -1, size, width)
    k, v = _blocks(keys, indices), _blocks(values, indices)
    logits = scale * jnp.einsum(
        "bhnqd,bhnkd->bhnqk", queries, k, preferred_element_type=jnp.float32
    )
    logits = jnp.where(_seen(listed, mask_ids, lists), logits, MASKED)
    if coarse is not None:
        grouped = q.reshape(batch, heads, coarse.k.shape[2], -1, width)
        more = jnp.einsum(
            "bhgqd,bhgcd->bhgqc", grouped, coarse.k, preferred_element_type=jnp.float32
        )
        more = (scale * more).reshape(batch, heads, rows, -1)
        weight = jnp.maximum(coarse.log_weight, MASKED)
        weight = jnp.repeat(weight, rows // weight.shape[2], axis=2)
        more = (more + weight).reshape(*queries.shape[:-1], -1)
        logits = jnp.concatenate([logits, more], axis=-1)
    lse = jax.nn.logsumexp(logits, axis=-1)
    weights = jnp.exp(logits - lse[..., None]).astype(v.dtype)
    fine = k.shape[3]
    out = jnp.einsum(
        "bhnqk,bhnkd->bhnqd", weights[..., :fine], v, preferred_element_type=jnp.float32
    ).reshape(batch, heads, rows, -1)
    if coarse is not None:
        weights = weights[..., fine:].reshape(*grouped.shape[:-1], -1)
        more = jnp.einsum(
            "bhgqc,bhgcd->bhgqd", weights, coarse.v, preferred_element_type=jnp.float32
        )
        out = out + more.reshape(out.shape)
    return out, lse.reshape(batch, heads, rows)


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
