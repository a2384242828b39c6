"""Grouped products by a loop over groups and over blocks of their rows, for a CPU.

XLA's own lowering of `ragged_dot` there multiplies all rows by all matrices. Here a group takes as
many blocks as it has rows; the last one reaches into the next group, whose rows are masked out.
"""

import jax
import jax.numpy as jnp

# Larger blocks waste more of a group's last one; smaller ones read a matrix more often.
_BLOCK = 256


def product(x: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """Each group of rows [R, D] times its matrix [E, D, F]: [R, F]; zero after the last group."""
    block = _block(len(x), len(kernels))

    def group(y: jax.Array, scanned: tuple) -> tuple[jax.Array, None]:
        kernel, start, size = scanned

        def one(i: jax.Array, y: jax.Array) -> jax.Array:
            row, mask = _tile(i, start, size, block, len(x))
            new = jnp.matmul(_rows(x, row, block), kernel, preferred_element_type=jnp.float32)
            new = jnp.where(mask, new.astype(y.dtype), _rows(y, row, block))
            return jax.lax.dynamic_update_slice(y, new, (row, 0))

        return jax.lax.fori_loop(0, -(-size // block), one, y), None

    y = jnp.zeros((len(x), kernels.shape[-1]), x.dtype)
    return jax.lax.scan(group, y, (kernels, jnp.cumsum(sizes) - sizes, sizes))[0]


def outer_product(x: jax.Array, y: jax.Array, sizes: jax.Array) -> jax.Array:
    """Each group's x^T y, of rows [R, D] and [R, F]: [E, D, F] in float32."""
    block = _block(len(x), len(sizes))

    def group(_: None, scanned: tuple) -> tuple[None, jax.Array]:
        start, size = scanned

        def one(i: jax.Array, total: jax.Array) -> jax.Array:
            row, mask = _tile(i, start, size, block, len(x))
            left = jnp.where(mask, _rows(x, row, block), 0)
            right = _rows(y, row, block)
            return total + jnp.matmul(left.T, right, preferred_element_type=jnp.float32)

        zero = jnp.zeros((x.shape[1], y.shape[1]), jnp.float32)
        return None, jax.lax.fori_loop(0, -(-size // block), one, zero)

    return jax.lax.scan(group, None, (jnp.cumsum(sizes) - sizes, sizes))[1]


def _block(rows: int, groups: int) -> int:
    """A block that wastes little when the groups are even, and fits into the rows."""
    even = rows // max(groups, 1)
    return max(1, min(_BLOCK, max(even // 2, 16), rows))


def _tile(i, start, size, block: int, rows: int) -> tuple[jax.Array, jax.Array]:
    """First row of a group's block i, moved back where it would overrun, and which rows count."""
    row = jnp.minimum(start + i * block, rows - block)
    numbers = row + jnp.arange(block)
    mask = (numbers >= start + i * block) & (numbers < start + size)
    return row, mask[:, None]


def _rows(x: jax.Array, row: jax.Array, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, row, count)
