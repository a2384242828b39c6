"""How a block-sparse problem is laid out for the TPU kernels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dit_jax.kernels.block_sparse.operands import MASKED, CoarseKeys, KeyLists

# Keys (or queries, in the gradient of keys) that are scored at once. A small tile is bound by
# latency; small blocks would need too many loads for a large one.
_TILE = 1024
_LOADS = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Operands of the kernels, samples and heads as one axis.

    Attributes:
      entries: a query block's count and key blocks, [G, NQ, 1 + K'], G = B * H or 1.
      mask_ids: pattern of each entry, [G, NQ, K'], or None.
      masks: additive patterns, [M, query_block, key_block] bfloat16, or None.
      allowed: which parts of an entry's block may meet, [G, NQ, K', R, C] bool, or None: R rows
        and C columns of equal size.
      query_block: rows of a query block.
      key_block: rows of a key block.
      full: whether all lists are whole tiles: nothing of one is beyond its end.
    """

    entries: jax.Array
    mask_ids: jax.Array | None
    masks: jax.Array | None
    allowed: jax.Array | None
    query_block: int = dataclasses.field(metadata={"static": True})
    key_block: int = dataclasses.field(metadata={"static": True})
    full: bool = dataclasses.field(metadata={"static": True})

    @property
    def listed(self) -> int:
        """Entries of a list, counted or not: a multiple of `keys_per_tile`."""
        return self.entries.shape[-1] - 1

    @property
    def keys_per_tile(self) -> int:
        """Key blocks that a query block scores at once."""
        return _blocks_per_tile(self.key_block)

    @property
    def queries_per_tile(self) -> int:
        """Query blocks that a key block scores at once."""
        return _blocks_per_tile(self.query_block)


def make_plan(lists: KeyLists) -> Plan:
    """Lays out the lists; those with regions become lists of regions with parts that may meet."""
    query_block, key_block, allowed = lists.query_block, lists.key_block, None
    indices, counts, mask_ids = lists.indices, lists.counts, lists.mask_ids
    if lists.regions is not None:
        allowed = _flat(_allowed(lists), 4)
        indices = lists.regions
        counts = jnp.full(indices.shape[:-1], indices.shape[-1], jnp.int32)
        query_block *= lists.region_blocks
        key_block *= lists.region_blocks
    surplus = -indices.shape[-1] % _blocks_per_tile(key_block)
    indices, counts = _pad(_flat(indices, 2), surplus, 2), _flat(counts[..., None], 2)
    return Plan(
        entries=jnp.concatenate([counts, indices], axis=-1).astype(jnp.int32),
        mask_ids=None if mask_ids is None else _pad(_flat(mask_ids, 2), surplus, 2),
        masks=None if lists.masks is None else additive(lists.masks),
        allowed=None if allowed is None else _pad(allowed, surplus, 2),
        query_block=query_block,
        key_block=key_block,
        full=lists.regions is not None and surplus == 0,
    )


def flatten_coarse(coarse: CoarseKeys) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Coarse keys, values [BH, G, C', D] and weights [BH or 1, G', C'], C' a multiple of 128."""
    surplus = -coarse.k.shape[3] % 128
    k, v = (_pad(_flat(x, 3), surplus, 2) for x in (coarse.k, coarse.v))
    weight = jnp.maximum(coarse.log_weight.astype(jnp.float32), MASKED)
    if weight.shape[:2] != (1, 1):
        weight = jnp.broadcast_to(weight, (*coarse.k.shape[:2], *weight.shape[2:]))
    return k, v, _pad(_flat(weight, 2), surplus, 2, MASKED)


def additive(seen: jax.Array) -> jax.Array:
    """0 where `seen`, and what masks a logit elsewhere; bfloat16."""
    return jnp.where(seen, 0, MASKED).astype(jnp.bfloat16)


def _allowed(lists: KeyLists) -> jax.Array:
    """Which blocks of a query region and of a key region are listed: [B, H, NR, R, S, S] bool."""
    size, regions = lists.region_blocks, lists.regions
    indices = jnp.where(lists.listed(), lists.indices, -1)
    indices = indices.reshape(*indices.shape[:-2], -1, 1, size, 1, indices.shape[-1])
    blocks = regions[..., None] * size + jnp.arange(size)  # [..., NR, R, S]
    return (indices == blocks[..., None, :, None]).any(-1)


def _blocks_per_tile(block: int) -> int:
    return max(1, min(_TILE // block, _LOADS))


def _flat(x: jax.Array, trailing: int) -> jax.Array:
    """Axes before the last `trailing` as one, which is 1 where there are none."""
    return x.reshape(-1, *x.shape[x.ndim - trailing :])


def _pad(x: jax.Array, surplus: int, axis: int, value: Any = 0) -> jax.Array:
    widths = [(0, surplus if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)
