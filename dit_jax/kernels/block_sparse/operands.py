"""What block-sparse attention takes besides queries, keys and values."""

import dataclasses

import jax
import jax.numpy as jnp

from dit_jax.errors import InputError

# Logit of what must not be seen: finite, so that rows without a key have gradients, which are zero.
MASKED = -1e30


def _static(default=dataclasses.MISSING):
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyLists:
    """Which blocks of keys each block of queries sees, as ragged lists.

    Lists without the axes B and H serve all samples and heads alike.

    Attributes:
      indices: key blocks of each query block, [NQ, K] or [B, H, NQ, K] int32, each at most once; a
        list's entries beyond its count are of no account.
      counts: how many of them count, [NQ] or [B, H, NQ] int32.
      query_block: rows of a block of queries.
      key_block: rows of a block of keys.
      masks: patterns finer than a block, [M, query_block, key_block] bool: which pairs may meet.
      mask_ids: pattern of each entry, shaped as `indices`; None where there are no masks.
      regions: for lists whose entries cluster, the key regions that each query region draws from,
        [B, H, NQ / S, R] int32: a region is S = `region_blocks` blocks, of queries or of keys. It
        changes no result: kernels that like larger blocks read regions, and mask the rest.
      region_blocks: blocks of a region.
    """

    indices: jax.Array
    counts: jax.Array
    query_block: int = _static()
    key_block: int = _static()
    masks: jax.Array | None = None
    mask_ids: jax.Array | None = None
    regions: jax.Array | None = None
    region_blocks: int = _static(1)

    def check(self, queries: int, keys: int) -> None:
        """Raises `InputError` unless the lists are those of so many queries and keys."""
        if queries != self.indices.shape[-2] * self.query_block or keys % self.key_block:
            raise InputError(
                f"{queries} queries and {keys} keys are not {self.indices.shape[-2]} blocks of "
                f"{self.query_block} and whole blocks of {self.key_block}: pad them"
            )
        if (self.masks is None) != (self.mask_ids is None):
            raise InputError("key lists have masks and mask_ids both, or neither")

    def listed(self) -> jax.Array:
        """Which entries count, shaped as `indices`, bool."""
        return jnp.arange(self.indices.shape[-1]) < self.counts[..., None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CoarseKeys:
    """Keys that stand for many tokens in the same softmax: each counts as `exp(log_weight)`.

    Queries come in G equal groups, one after another, each with C keys of its own; with G = 1 all
    queries share them. Weights may be given for finer groups than keys.

    Attributes:
      k: keys, [B, H, G, C, D].
      v: their values, likewise.
      log_weight: [B, H, G', C] or [1, 1, G', C] float32, -inf for a key that a group does not see;
        it has no gradient. G' is 1 or a multiple of G.
    """

    k: jax.Array
    v: jax.Array
    log_weight: jax.Array

    def check(self, query_blocks: int) -> None:
        """Raises `InputError` unless groups are of whole query blocks, and weights of the keys."""
        groups, weights = self.k.shape[2], self.log_weight.shape[2]
        divide = query_blocks % groups == 0 and query_blocks % weights == 0
        if not divide or (weights > 1 and weights % groups):
            raise InputError(
                f"{groups} groups of coarse keys with {weights} rows of weights do not divide "
                f"{query_blocks} query blocks"
            )
        if self.k.shape != self.v.shape or self.log_weight.shape[3] != self.k.shape[3]:
            raise InputError(
                f"coarse keys {self.k.shape}, values {self.v.shape} and weights "
                f"{self.log_weight.shape} are not of the same keys"
            )
