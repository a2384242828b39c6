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
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
