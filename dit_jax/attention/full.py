"""Full softmax attention."""

import dataclasses

import jax
import jax.numpy as jnp

from dit_jax.attention.mixer import TokenMixer


@dataclasses.dataclass(frozen=True)
class Full(TokenMixer):
    """Every token sees every token: softmax(q k^T / sqrt(Dh)) v, softmax in float32."""

    def __call__(self, q, k, v, grid):
        del grid
        # Heads go first, once: a CPU's matrix products are slow over a batch axis that lies inside.
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
        return jnp.einsum("bhqk,bhkd->bhqd", weights, v).swapaxes(1, 2)
