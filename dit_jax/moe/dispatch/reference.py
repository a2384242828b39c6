"""The definition: every expert sees every token, and most results are multiplied by zero."""

import dataclasses

import jax
import jax.numpy as jnp

from dit_jax.moe.dispatch.dispatch import Dispatch, token_of_slot


@dataclasses.dataclass(frozen=True)
class Reference(Dispatch):
    """A loop over experts; costs what all experts cost together. For tests and for reading."""

    def __call__(self, x, routing, params, compute):
        groups, tokens, width = x.shape
        gates = jnp.zeros((groups * tokens, routing.count + 1), jnp.float32)
        index = token_of_slot(routing, tokens).reshape(-1), routing.experts.reshape(-1)
        gates = gates.at[index].add(routing.weights.reshape(-1))
        gates = gates.reshape(groups, tokens, -1, 1)
        total = jnp.zeros(x.shape, jnp.float32)
        for expert in range(routing.count):
            own = jax.tree.map(lambda leaf, expert=expert: leaf[expert], params)
            total += gates[:, :, expert] * compute(own, x, _dot)
        return total.astype(x.dtype), jnp.zeros(())


def _dot(x, layer):
    kernel = layer["kernel"].astype(x.dtype)
    y = x @ kernel.reshape(x.shape[-1], -1)
    return y + layer["bias"].astype(x.dtype) if "bias" in layer else y
