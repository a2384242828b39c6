"""Grouped products by `jax.lax.ragged_dot`."""

import jax
import jax.numpy as jnp

# Rows of both operands are contracted, group by group.
_OUTER = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=(0,),
    rhs_group_dimensions=(),
)


def product(x: jax.Array, kernels: jax.Array, sizes: jax.Array, exact: bool = False) -> jax.Array:
    """Each group of rows [R, D] times its matrix [E, D, F]: [R, F]; zero after the last group.

    With `exact`, there are no rows after it.
    """
    # Matrix units add up in float32 all the same; written so, it would be twice the bytes.
    y = jax.lax.ragged_dot(x, kernels, sizes, preferred_element_type=x.dtype)
    if exact:
        return y
    # A kernel need not write rows that belong to nobody.
    used = jnp.arange(len(x)) < sizes.sum()
    return jnp.where(used[:, None], y, 0)


def outer_product(x: jax.Array, y: jax.Array, sizes: jax.Array) -> jax.Array:
    """Each group's x^T y, of rows [R, D] and [R, F]: [E, D, F] in float32."""
    return jax.lax.ragged_dot_general(x, y, sizes, _OUTER, preferred_element_type=jnp.float32)
