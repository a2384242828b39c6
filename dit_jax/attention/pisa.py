"""Piecewise sparse attention (arXiv 2602.01077)."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from dit_jax.attention.mixer import TokenMixer
from dit_jax.attention.sparse import Tokens, in_cells, log_counts
from dit_jax.errors import InputError
from dit_jax.kernels.block_sparse import CoarseKeys, KeyLists


@dataclasses.dataclass(frozen=True)
class PISA(TokenMixer):
    """Each tile sees the tiles that matter most exactly, and the others by a Taylor expansion.

    The exact ones are those of the largest products of mean query and mean key. A tile j that is
    not among them adds n_j e^(s q kbar_j) to the denominator and e^(s q kbar_j) sum v_n to the
    numerator (order zero). First order adds (g / N) s q H to the numerator, with one H = sum over
    all tiles of (k_n - kbar_j)^T v_n, N the number of tokens, and g the denominator's part of the
    tiles that are not exact. At density 1 it is full attention; trained weights need no change.
    Layers of order zero and of order one in turns are the paper's hybrid.

    The choice has no gradient. Source: PISA (arXiv 2602.01077).

    Attributes:
      density: share of the tiles that is exact; at least one is.
      order: of the expansion, or "drop" to leave the other tiles out.
      by_covariance: rank a tile also by log ||sum (k_n - kbar_j)^T v_n||, by how much order zero
        would miss of it.
      tile: tokens of a tile on each axis.
    """

    density: float = 0.15
    order: Literal["drop", "zeroth", "first"] = "zeroth"
    by_covariance: bool = False
    tile: tuple[int, ...] = (8, 8)

    def __call__(self, q, k, v, grid):
        if not 0 < self.density <= 1:
            raise InputError(f"PISA's density lies in (0, 1], not {self.density}")
        tokens = in_cells(q, k, v, grid, self.tile, means=True)
        ((q1, k1, v1),) = tokens.means
        indices, coarse = self._route(tokens, q1, k1, v1)
        size = math.prod(self.tile)
        counts = jnp.full(indices.shape[:-1], indices.shape[-1], jnp.int32)
        lists = KeyLists(indices=indices, counts=counts, query_block=size, key_block=size)
        mixed, lse = tokens.attend(lists, *(() if self.order == "drop" else (coarse,)))
        if self.order == "first":
            mixed += _first_order(tokens, coarse, k1, lse).astype(mixed.dtype)
        return tokens.finish(mixed)

    def _route(self, tokens: Tokens, q1, k1, v1) -> tuple[jax.Array, CoarseKeys]:
        """The exact tiles of each tile, [B, H, T, K], and means that stand for the others."""
        filled = tokens.cells.filled()
        scores = jnp.einsum(
            "bhid,bhjd->bhij",
            *jax.lax.stop_gradient((q1, k1)),
            preferred_element_type=jnp.float32,
        )
        if self.by_covariance:
            covariances = jax.lax.stop_gradient(_covariance("bhtnd,bhtne->bhtde", tokens, k1))
            norms = jnp.sqrt(jnp.square(covariances).sum((-2, -1)))
            scores = scores * q1.shape[-1] ** -0.5 + jnp.log(norms + 1e-5)[:, :, None]
        exact = max(1, int(self.density * len(filled)))
        values, indices = jax.lax.top_k(scores, exact)
        # Of equal scores the first are taken. (A scatter would be slow on TPUs.)
        least = values[..., -1:]
        last = jnp.where(values == least, indices, -1).max(-1, keepdims=True)
        is_exact = (scores > least) | ((scores == least) & (jnp.arange(len(filled)) <= last))
        weights = jnp.where(is_exact, -jnp.inf, log_counts(filled))
        return indices, CoarseKeys(k1[:, :, None], v1[:, :, None], weights)


def _covariance(formula: str, tokens: Tokens, k1: jax.Array) -> jax.Array:
    """Sums of (k_n - kbar_j)^T v_n by tile or over all, float32."""
    k, v = (x.reshape(*k1.shape[:3], -1, k1.shape[-1]) for x in (tokens.k, tokens.v))
    # What fills up a tile has no value, and so no part in it.
    return jnp.einsum(formula, k - k1[..., None, :], v, preferred_element_type=jnp.float32)


def _first_order(tokens: Tokens, coarse: CoarseKeys, k1: jax.Array, lse: jax.Array) -> jax.Array:
    """The expansion's first order, [B, H, N', D] float32."""
    scale, rows = tokens.q.shape[-1] ** -0.5, coarse.log_weight.shape[2]

    @jax.checkpoint
    def share(tile: tuple) -> jax.Array:
        """The denominator's part of the tiles that are not exact, of one tile of queries."""
        q, weight, lse = tile
        logits = jnp.einsum("bhqd,bhjd->bhqj", q, k1, preferred_element_type=jnp.float32)
        return jnp.exp(scale * logits + weight[:, :, None] - lse[..., None]).sum(-1)

    def tiles(x: jax.Array) -> jax.Array:
        """Tiles of [B, H, T * n, ...] as axis 0."""
        return jnp.moveaxis(x.reshape(*x.shape[:2], rows, -1, *x.shape[3:]), 2, 0)

    # One tile at a time: all of them at once would have N^2 / 64 elements.
    scanned = tiles(tokens.q), jnp.moveaxis(coarse.log_weight, 2, 0), tiles(lse)
    shares = jnp.moveaxis(jax.lax.map(share, scanned), 0, 2).reshape(lse.shape)
    slope = jnp.einsum(
        "bhqd,bhde->bhqe",
        tokens.q.astype(jnp.float32),
        _covariance("bhtnd,bhtne->bhde", tokens, k1),
    )
    return shares[..., None] * (scale / math.prod(tokens.cells.grid)) * slope
