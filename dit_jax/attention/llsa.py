"""Log-linear sparse attention (arXiv 2512.16615)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.attention.mixer import TokenMixer
from dit_jax.attention.sparse import Tokens, in_cells, log_counts
from dit_jax.errors import InputError
from dit_jax.kernels.block_sparse import CoarseKeys, KeyLists

# Blocks of 16 tokens are squares of 4 x 4, and 16 of those a square of 16 x 16.
_BLOCK, _REGION = (4, 4), (16, 16)
_CHILDREN = 16


@dataclasses.dataclass(frozen=True)
class LLSA(TokenMixer):
    """Each block of 4 x 4 tokens sees the `top_k` blocks nearest to it, and means of all.

    One level: blocks are chosen by the products of mean queries and mean keys; the mean key and
    value of *every* block is seen too, as 16 tokens. Two levels: `top_k` regions of 16 x 16 are
    chosen first, and blocks among theirs; what is seen of the rest are the means of the chosen
    regions' blocks and of all regions, as 16 and 256 tokens. All in one softmax; what is chosen
    counts as tokens and in its means, as in the authors' code, so choosing all blocks is not full
    attention. (Their kernel drops means beyond a multiple of 64; this one does not.) A block at
    the end of the grid counts as the tokens that it holds.

    The choice has no gradient. Source: LLSA (arXiv 2512.16615).

    Attributes:
      levels: 1, or 2 as the paper does from 128 x 128 tokens on.
      top_k: blocks that a block sees, and regions that a region draws them from.
    """

    levels: Literal[1, 2] = 1
    top_k: int = 8

    def __call__(self, q, k, v, grid):
        if len(grid) != 2 or self.top_k < 1 or self.levels not in (1, 2):
            raise InputError(
                f"LLSA has 1 or 2 levels, chooses at least one block and wants a grid of rows and "
                f"columns; not {self.levels} levels, {self.top_k} blocks, and a grid of {grid}"
            )
        sides = (_BLOCK,) if self.levels == 1 else (_REGION, _BLOCK)
        tokens = in_cells(q, k, v, grid, *sides, means=True)
        choose = self._one_level if self.levels == 1 else self._two_levels
        return tokens.finish(tokens.attend(*choose(tokens))[0])

    def _one_level(self, tokens: Tokens) -> tuple[KeyLists, CoarseKeys]:
        filled = tokens.cells.filled()
        ((q1, k1, v1),) = tokens.means
        indices, counts = _nearest(q1, k1, jnp.asarray(filled > 0), self.top_k)
        lists = KeyLists(indices=indices, counts=counts, query_block=_CHILDREN, key_block=_CHILDREN)
        return lists, _shared(k1, v1, filled)

    def _two_levels(self, tokens: Tokens) -> tuple[KeyLists, CoarseKeys, CoarseKeys]:
        cells = tokens.cells
        filled1, filled2 = cells.filled(1), cells.filled(0)
        (q2, k2, v2), (q1, k1, v1) = tokens.means
        regions, _ = _nearest(q2, k2, jnp.asarray(filled2 > 0), self.top_k)

        def by_region(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], len(filled2), _CHILDREN, *x.shape[3:])

        def of_regions(x: jax.Array) -> jax.Array:
            """Blocks [.., T1, D] of the regions that each region chose, [B, H, NR, R 16, D]."""
            found = jax.vmap(jax.vmap(lambda x, i: x[i]))(by_region(x), regions)
            return found.reshape(*regions.shape[:3], -1, x.shape[-1])

        k1, v1 = of_regions(k1), of_regions(v1)
        weights = jnp.asarray(log_counts(filled1).reshape(-1, _CHILDREN))[regions]
        weights = weights.reshape(*regions.shape[:3], -1)
        chosen, counts = _nearest(by_region(q1), k1, weights > -jnp.inf, self.top_k)
        # A sum, not a gather: TPUs are slow at gathering single numbers.
        drawn = chosen[..., None] // _CHILDREN == jnp.arange(regions.shape[-1])
        region = jnp.where(drawn, regions[:, :, :, None, None], 0).sum(-1)
        indices = region * _CHILDREN + chosen % _CHILDREN
        lists = KeyLists(
            indices=indices.reshape(*indices.shape[:2], -1, indices.shape[-1]),
            counts=counts.reshape(*counts.shape[:2], -1),
            query_block=_CHILDREN,
            key_block=_CHILDREN,
            regions=regions,
            region_blocks=_CHILDREN,
        )
        return lists, CoarseKeys(k1, v1, weights), _shared(k2, v2, filled2)


def _shared(k: jax.Array, v: jax.Array, filled: np.ndarray) -> CoarseKeys:
    """Means [B, H, T, D] that all queries see, each as the tokens that it stands for."""
    return CoarseKeys(
        k[:, :, None], v[:, :, None], jnp.asarray(log_counts(filled))[None, None, None]
    )


def _nearest(
    q: jax.Array, k: jax.Array, there: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """The keys [..., M, D] of the largest products with each query [..., n, D], of those there.

    Returns:
      Their numbers [..., n, min(count, M)], and how many of them there are [..., n]. Of equals the
      first is taken.
    """
    q, k = jax.lax.stop_gradient((q, k))
    scores = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(there[..., None, :], scores, -jnp.inf)
    candidates, found = jnp.arange(k.shape[-2]), []
    # One after another: `jax.lax.top_k` sorts all candidates on TPUs, which costs ten times more.
    for _ in range(min(count, k.shape[-2])):
        best = scores.max(-1), scores.argmax(-1)
        found.append(best)
        scores = jnp.where(candidates == best[1][..., None], -jnp.inf, scores)
    values, indices = (jnp.stack(part, axis=-1) for part in zip(*found, strict=True))
    return indices, (values > -jnp.inf).sum(-1, dtype=jnp.int32)
