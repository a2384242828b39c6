"""Switch-DiT's router, which looks at the time alone (Park et al., arXiv 2403.09176)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.layers.linear import linear
from dit_jax.moe.routing import Router, Routing, token_choice


class SwitchRouter(Router):
    """All tokens of a sample take the same experts, which depend on its noise level.

    The top k's probabilities are weights as they are, without division by their sum. aux has all
    of them as `gates`, [B, E], for the diffusion prior loss (`SwitchDiT`).

    Attributes:
      experts: number of experts.
      top_k: experts a sample.
    """

    experts: int = 3
    top_k: int = 2

    @property
    def chosen(self):
        return self.top_k

    @nn.compact
    def __call__(self, x, context):
        gate = linear(self.experts, nn.silu(context.time.astype(jnp.float32)), "gate")
        gates = jax.nn.softmax(gate)
        weights, experts = token_choice(gates[:, None], self.top_k)
        slots = jnp.tile(weights, (1, x.shape[1])), jnp.tile(experts, (1, x.shape[1]))
        return Routing(*slots, None, self.experts), {"gates": gates}
