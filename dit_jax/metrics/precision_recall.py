"""Improved precision and recall: which samples lie among real images, and the other way round."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.metrics.checks import check_features
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, place


def precision_recall(
    samples: np.ndarray, reference: np.ndarray, neighbours: int = 3, block_size: int = 5000
) -> tuple[float, float]:
    """Shares of samples and of references within each other's manifold (arXiv 1904.06991).

    A set's manifold is all balls around its features that reach to their k-th nearest neighbour,
    the border included. ADM compares 50,000 samples with 10,000 references.

    Works in blocks on this process's devices, which share the rows of each. Distances are squared,
    as in ADM's evaluator, but in float32. Its own are in float16 unless one is too large for that:
    near 300, as Inception's are, in steps of a quarter. In a simulation of features of this size
    that moved both shares by up to 0.003, mostly upwards.

    Args:
      samples: features [N, D].
      reference: features [M, D].
      neighbours: k.
      block_size: most rows and columns of distances that are held at once, which the result does
        not depend on. By default it divides both of ADM's numbers.

    Returns:
      Precision and recall.

    Raises:
      InputError: features do not fit together, or there are not more than `neighbours`.
    """
    check_features(samples, reference, fewest=neighbours + 1)
    blocks = _Blocks(min(block_size, max(len(samples), len(reference))))
    # About the mean, norms are small, and so is the rounding of distances made from them.
    center = reference.mean(axis=0, dtype=np.float64).astype(np.float32)
    a, b = ((x - center).astype(np.float32, copy=False) for x in (samples, reference))
    precise, recalled = blocks.members(
        a, blocks.radii(a, neighbours), b, blocks.radii(b, neighbours)
    )
    return float(precise.mean()), float(recalled.mean())


class _Blocks:
    """Computes squared distances between sets of features [N, D] and [M, D] block by block."""

    def __init__(self, size: int):
        self._layout = Layout(Parallel().mesh(jax.local_devices()))
        ways = self._layout.ways("batch")
        self._size = -(-size // ways) * ways

    def radii(self, features: np.ndarray, neighbours: int) -> np.ndarray:
        """Squared distances to the k-th nearest neighbours, [N]."""
        starts, radii = range(0, len(features), self._size), []
        for start in starts:
            rows = self._rows(features, start, 0)
            nearest = np.full((self._size, neighbours + 1), np.inf, np.float32)  # And itself.
            for other in starts:
                columns = self._columns(features, other, 0)
                nearest = _nearest(nearest, rows, columns, len(features) - other)
                # Else the transfers would run ahead, and fill the memory.
                nearest.block_until_ready()
            radii.append(nearest[:, -1])
        return np.concatenate(radii)[: len(features)]

    def members(
        self, a: np.ndarray, radii_a: np.ndarray, b: np.ndarray, radii_b: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which of `a` lie in a ball of `b`, [N], and which of `b` in one of `a`, [M]."""
        size = self._size
        a_inside, b_inside = np.zeros(len(a), bool), np.zeros(len(b), bool)
        for i in range(0, len(a), size):
            rows, row_radii = self._rows(a, i, 0), self._rows(radii_a, i, -1)
            for j in range(0, len(b), size):
                columns, column_radii = self._columns(b, j, 0), self._columns(radii_b, j, -1)
                of_a, of_b = _members(rows, row_radii, columns, column_radii)
                a_inside[i : i + size] |= np.asarray(of_a)[: len(a) - i]
                b_inside[j : j + size] |= np.asarray(of_b)[: len(b) - j]
        return a_inside, b_inside

    def _rows(self, x: np.ndarray, start: int, padding: float) -> jax.Array:
        return place(self._cut(x, start, padding), self._layout.batch)

    def _columns(self, x: np.ndarray, start: int, padding: float) -> jax.Array:
        return place(self._cut(x, start, padding), self._layout.replicated)

    def _cut(self, x: np.ndarray, start: int, padding: float) -> np.ndarray:
        """One block of rows; the last is as long as all, that nothing is compiled for it."""
        block = x[start : start + self._size]
        missing = [(0, self._size - len(block))] + [(0, 0)] * (x.ndim - 1)
        return np.pad(block, missing, constant_values=padding)


@jax.jit
def _nearest(
    nearest: jax.Array, rows: jax.Array, columns: jax.Array, count: jax.Array
) -> jax.Array:
    """The smallest distances [R, k + 1], ascending, of those known and those to `count` columns."""
    distances = _squared_distances(rows, columns)
    distances = jnp.where(jnp.arange(len(columns)) < count, distances, jnp.inf)
    known = jnp.concatenate([nearest, distances], axis=1)
    return -jax.lax.top_k(-known, nearest.shape[1])[0]


@jax.jit
def _members(
    rows: jax.Array, row_radii: jax.Array, columns: jax.Array, column_radii: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which rows lie in a column's ball, [R], and which columns in a row's, [C].

    No feature lies in a ball whose radius is negative.
    """
    distances = _squared_distances(rows, columns)
    in_columns = (distances <= column_radii).any(axis=1)
    return in_columns, (distances <= row_radii[:, None]).any(axis=0)


def _squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    products = jnp.matmul(a, b.T, precision="highest")
    squares = jnp.square(a).sum(axis=1)[:, None] + jnp.square(b).sum(axis=1)
    return jnp.maximum(squares - 2 * products, 0)
