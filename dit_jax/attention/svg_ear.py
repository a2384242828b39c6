"""Clustered keys with error-aware routing (SVG-EAR, arXiv 2603.08982)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.attention.mixer import TokenMixer
from dit_jax.attention.sparse import prefix_keys, prepend_prefix
from dit_jax.errors import InputError
from dit_jax.kernels.block_sparse import CoarseKeys, KeyLists, block_sparse_attention


@dataclasses.dataclass(frozen=True)
class SVGEAR(TokenMixer):
    """Queries and keys are clustered; a cluster of queries sees some clusters of keys exactly.

    A cluster j that is not among them counts as n_j tokens with its mean key and mean value. Exact
    are those where that would be most wrong for what they cost, as far as a share `density` of all
    key blocks goes. Trained weights need no change.

    The estimate of the error is this library's reading, since the paper's probe is not public: the
    first two terms that e^(s q kbar_j) (n_j vbar_j) leaves out, at the mean query. So is the
    budget: a share of the blocks for each cluster of queries. Clusters are found by k-means on
    queries and on keys (as in SVG2), from evenly spaced tokens, anew in each call. They, and the
    choice, have no gradient. Source: SVG-EAR (arXiv 2603.08982).

    Attributes:
      query_clusters: clusters of queries, a head.
      key_clusters: clusters of keys, a head.
      density: share of the key blocks that is exact, at most.
      iterations: of k-means.
      block: tokens of a block; a cluster is filled up to whole blocks.
    """

    query_clusters: int = 64
    key_clusters: int = 128
    density: float = 0.15
    iterations: int = 10
    block: int = 64

    def __call__(self, q, k, v, grid):
        first = q.shape[1] - int(np.prod(grid))
        if first < 0 or not 0 < self.density <= 1:
            raise InputError(
                f"SVG-EAR wants the {int(np.prod(grid))} tokens of its grid and a density in "
                f"(0, 1], not {q.shape[1]} tokens and {self.density}"
            )
        queries, keys, values = (x[:, first:].swapaxes(1, 2) for x in (q, k, v))
        rows = clusters(queries, self.query_clusters, self.iterations, self.block)
        columns = clusters(keys, self.key_clusters, self.iterations, self.block)
        budget = max(1, int(self.density * columns.fill.shape[-1]))
        exact = most_wrong(queries, keys, values, rows, columns, budget)
        split = rows.split(queries), columns.split(keys), columns.split(values)
        coarse = *prefix_keys(k, v, first), _means(keys, values, rows, columns, exact)
        lists = self._lists(rows, columns, exact, budget)
        mixed, _ = block_sparse_attention(*split, lists, *coarse)
        return prepend_prefix(rows.join(mixed).swapaxes(1, 2), q, k, v)

    def _lists(
        self, rows: "Clusters", columns: "Clusters", exact: jax.Array, budget: int
    ) -> KeyLists:
        """The blocks of the exact clusters of each block's cluster, masks of what is filled."""
        seen = jnp.take_along_axis(exact, columns.cluster[:, :, None], axis=3)
        seen &= (columns.fill > 0)[:, :, None]
        counts = seen.sum(-1, dtype=jnp.int32)
        indices = jnp.argsort(~seen, axis=-1, stable=True)[..., :budget]
        of_block = rows.cluster[..., None]
        indices = jnp.take_along_axis(indices, of_block, axis=2).astype(jnp.int32)
        filled = jnp.take_along_axis(columns.fill[:, :, None], indices, axis=3)
        patterns = np.arange(self.block) < np.arange(1, self.block + 1)[:, None]
        masks = np.broadcast_to(patterns[:, None], (self.block, self.block, self.block))
        return KeyLists(
            indices=indices,
            counts=jnp.take_along_axis(counts, rows.cluster, axis=2),
            query_block=self.block,
            key_block=self.block,
            masks=jnp.asarray(masks),
            mask_ids=jnp.maximum(filled - 1, 0),
        )


class Clusters(NamedTuple):
    """Tokens in clusters, each filled up to whole blocks.

    Attributes:
      member: which token is in which cluster, [B, H, N, C] float32, one-hot.
      counts: tokens of each cluster, [B, H, C] float32.
      place: of each token among the filled-up blocks, [B, H, N] int32.
      token: of each such place, N where there is none, [B, H, N'] int32.
      blocks: of each cluster, [B, H, C] float32.
      cluster: of each block, [B, H, N' / block] int32; the last one's where no cluster has it.
      fill: tokens of each block, which come first, [B, H, N' / block] int32.
    """

    member: jax.Array
    counts: jax.Array
    place: jax.Array
    token: jax.Array
    blocks: jax.Array
    cluster: jax.Array
    fill: jax.Array

    def means(self, x: jax.Array) -> jax.Array:
        """Means of tokens [B, H, N, D] over clusters, zero where there is none, float32."""
        sums = jnp.einsum("bhnc,bhnd->bhcd", self.member, x.astype(jnp.float32))
        return sums / jnp.maximum(self.counts, 1)[..., None]

    def split(self, x: jax.Array) -> jax.Array:
        """Tokens [B, H, N, D] in blocks of their clusters, [B, H, N', D]."""
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0)))
        return jnp.take_along_axis(x, self.token[..., None], axis=2)

    def products(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Sums of x_n y_n^T over clusters, of tokens [B, H, N, D]: [B, H, C, D, D]."""
        x, y = (self.split(z).reshape(*self.fill.shape, -1, z.shape[-1]) for z in (x, y))
        member = jax.nn.one_hot(self.cluster, self.counts.shape[-1])
        sums = jnp.einsum("bhtnd,bhtne->bhtde", x, y)
        return jnp.einsum("bhtc,bhtde->bhcde", member, sums)

    def join(self, x: jax.Array) -> jax.Array:
        """Back from [B, H, N', D] to tokens [B, H, N, D]."""
        return jnp.take_along_axis(x, self.place[..., None], axis=2)


def most_wrong(
    q: jax.Array, k: jax.Array, v: jax.Array, rows: Clusters, columns: Clusters, budget: int
) -> jax.Array:
    """Which clusters of keys each cluster of queries is to see exactly, [B, H, Cq, Ck] bool.

    Those whose means would be most wrong for the blocks that they cost, while their blocks are no
    more than `budget`. The error is that of tokens [B, H, N, D] seen from the mean query.
    """
    q, k, v = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (q, k, v))
    scale, blocks = q.shape[-1] ** -0.5, columns.blocks[:, :, None]
    qbar, kbar, vbar = rows.means(q), columns.means(k), columns.means(v)
    k = k - jnp.einsum("bhnc,bhcd->bhnd", columns.member, kbar)
    # sum_n e^(s q k_n) v_n = e^(s q kbar) sum_n (1 + s q (k_n - kbar) + ...) v_n
    first = scale * jnp.einsum("bhid,bhjde->bhije", qbar, columns.products(k, v))
    second = scale**2 / 2 * jnp.einsum("bhid,bhjde,bhie->bhij", qbar, columns.products(k, k), qbar)
    error = jnp.linalg.norm(first, axis=-1) + second * jnp.linalg.norm(vbar, axis=-1)[:, :, None]
    logits = scale * jnp.einsum("bhid,bhjd->bhij", qbar, kbar)
    worth = logits + jnp.log(error + 1e-30) - jnp.log(jnp.maximum(blocks, 1))
    order = jnp.argsort(jnp.where(blocks > 0, -worth, jnp.inf), axis=-1)
    cost = jnp.take_along_axis(jnp.broadcast_to(blocks, order.shape), order, axis=-1)
    affordable = (cost.cumsum(-1) <= budget) & (cost > 0)
    return jnp.put_along_axis(jnp.zeros_like(affordable), order, affordable, -1, inplace=False)


def clusters(x: jax.Array, count: int, iterations: int, block: int) -> Clusters:
    """Clusters of tokens [B, H, N, D] by k-means, laid out in blocks of `block` tokens."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    batch, heads, tokens, _ = x.shape
    count = min(count, tokens)
    start = x[:, :, np.arange(count) * tokens // count]

    def nearest(centres: jax.Array) -> jax.Array:
        distances = jnp.square(centres).sum(-1)[:, :, None] - 2 * jnp.einsum(
            "bhnd,bhcd->bhnc", x, centres
        )
        return distances.argmin(-1)

    def step(_: int, centres: jax.Array) -> jax.Array:
        member = jax.nn.one_hot(nearest(centres), count)
        sums, sizes = jnp.einsum("bhnc,bhnd->bhcd", member, x), member.sum(2)[..., None]
        return jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), centres)

    number = nearest(jax.lax.fori_loop(0, iterations, step, start))
    member = jax.nn.one_hot(number, count)
    counts = member.sum(2)
    rank = jnp.take_along_axis(member.cumsum(2), number[..., None], axis=3)[..., 0] - 1
    blocks = jnp.ceil(counts / block)
    ends = blocks.cumsum(-1)
    place = jnp.take_along_axis((ends - blocks) * block, number, axis=2) + rank
    place = place.astype(jnp.int32)
    # Each cluster may leave all but one token of its last block empty.
    total = -(-(tokens + count * (block - 1)) // block)
    b, h = np.ogrid[:batch, :heads]
    token = jnp.full((batch, heads, total * block), tokens, jnp.int32)
    token = token.at[b[..., None], h[..., None], place].set(jnp.arange(tokens, dtype=jnp.int32))
    fill = (token < tokens).reshape(batch, heads, total, block).sum(-1, dtype=jnp.int32)
    cluster = (jnp.arange(total)[:, None] >= ends[:, :, None]).sum(-1, dtype=jnp.int32)
    return Clusters(member, counts, place, token, blocks, jnp.minimum(cluster, count - 1), fill)


def _means(k, v, rows: Clusters, columns: Clusters, exact: jax.Array) -> CoarseKeys:
    """Mean keys and values of the clusters that are not exact, each as its tokens."""
    there = ~exact & (columns.counts > 0)[:, :, None]
    weight = jnp.where(there, jnp.log(jnp.maximum(columns.counts, 1))[:, :, None], -jnp.inf)
    weight = jnp.take_along_axis(weight, rows.cluster[..., None], axis=2)
    k, v = (columns.means(x).astype(x.dtype)[:, :, None] for x in (k, v))
    return CoarseKeys(k, v, weight)
