"""Balance without a loss: a bias an expert (Wang et al., arXiv 2408.15664)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.moe.routing import Router, Routing, affinity, token_choice
from dit_jax.moe.statistics import moved_by


class LossFreeRouter(Router):
    """Sigmoid scores; a bias added to them decides who is chosen, and is not in the weights.

    After every step the bias of an expert with more than its even share of tokens falls by `rate`,
    that of one with less rises by it (algorithm 1).

    Attributes:
      experts: number of experts.
      top_k: experts a token; their scores are divided by their sum.
      rate: how much a bias moves in a step.
    """

    experts: int = 8
    top_k: int = 2
    rate: float = 0.001

    @property
    def chosen(self):
        return self.top_k

    @nn.compact
    def __call__(self, x, context):
        del context
        scores = jax.nn.sigmoid(affinity(self, x, self.experts))
        bias = self.param("bias_statistic", nn.initializers.zeros, (self.experts,))
        _, experts = token_choice(scores + bias, self.top_k)
        choice = experts.reshape(*x.shape[:2], self.top_k)
        chosen = jnp.take_along_axis(scores, choice, axis=-1)
        weights = (chosen / chosen.sum(-1, keepdims=True)).reshape(experts.shape)
        routing = Routing(weights, experts, None, self.experts)
        loads = routing.loads()
        step = self.rate * jnp.sign(loads - loads.mean())
        return routing, {"statistics": {"bias": moved_by(bias, step)}}
