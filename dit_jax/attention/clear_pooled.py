"""CLEAR's local attention with pooled keys and values besides (arXiv 2412.16112)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.attention.clear import disc
from dit_jax.attention.mixer import TokenMixer
from dit_jax.attention.sparse import in_cells
from dit_jax.kernels.block_sparse import CoarseKeys
from dit_jax.kernels.cells import Cells, split


@TokenMixer.register
class PooledCLEAR(nn.Module):
    """Each token sees those in a disc around it, and sums over all cells of `pool` x `pool` tokens.

    A sum is weighted by the place in the cell, with weights that all heads share, for keys (after
    rotation) as for values; they start as means. At the grid's end a sum has fewer terms. Tokens
    before the grid's do not see the sums.

    Attributes:
      radius: of the disc, in tokens.
      pool: side of a cell that is summed over; frames are pooled one by one.
      tile: tokens of a block on each axis, a matter of speed alone.
    """

    radius: int = 16
    pool: int = 4
    tile: tuple[int, ...] = (16, 16)

    @nn.compact
    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, grid: tuple[int, ...]
    ) -> jax.Array:
        """Mixes q, k, v [B, N, H, Dh] as a `TokenMixer` does."""
        init = nn.initializers.constant(1 / self.pool**2)
        weight = self.param("pool_weight", init, (self.pool, self.pool)).reshape(-1)
        tokens = in_cells(q, k, v, grid, self.tile)
        cells = Cells(tuple(grid), ((*(1,) * (len(grid) - 2), self.pool, self.pool),))

        def pooled(x: jax.Array) -> jax.Array:
            """Sums over cells of the grid's tokens, [B, H, 1, cells, Dh]."""
            x = split(x[:, -math.prod(grid) :], cells)[0]
            x = x.reshape(*x.shape[:2], 1, -1, len(weight), x.shape[-1])
            return jnp.einsum("bhgcnd,n->bhgcd", x, weight.astype(x.dtype))

        keys, values = pooled(k), pooled(v)
        coarse = CoarseKeys(keys, values, jnp.zeros((1, 1, *keys.shape[2:4]), jnp.float32))
        return tokens.finish(tokens.attend(disc(tokens.cells, self.radius), coarse)[0])
