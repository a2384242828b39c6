"""Softmax attention by two einsums: the definition, and what a CPU and short sequences want."""

import jax
import jax.numpy as jnp


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Mixes values [B, N, H, Dh] in their dtype; the weights [B, H, N, N] lie in memory."""
    # Heads go first, once: a CPU's matrix products are slow over a batch axis that lies inside.
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v).swapaxes(1, 2)
