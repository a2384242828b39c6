"""Slots in the order of their experts."""

import jax
import jax.numpy as jnp


def sort_by_expert(experts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sorts slots [S] by expert, those of one expert in their order.

    Returns:
      The slot of each row, and the row of each slot.
    """
    order = jnp.argsort(experts, stable=True)
    return order, jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=order.dtype))


@jax.custom_vjp
def permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """Returns x[order]. Its gradient is a gather too, as the inverse permutation is known."""
    del inverse
    return x[order]


permute.defvjp(
    lambda x, order, inverse: (x[order], (order, inverse)),
    lambda saved, dy: (permute(dy, saved[1], saved[0]), None, None),
)
