"""Top-k routing as language models have it: renormalised weights, balance and z losses."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.moe.routing import Router, Routing, affinity, balance_loss, token_choice


class TopKRouter(Router):
    """Softmax over experts; the top k's probabilities are divided by their sum.

    The z-loss keeps logits small (ST-MoE, arXiv 2202.08906, eq. 5).

    Attributes:
      experts: number of experts.
      top_k: experts a token.
      balance: coefficient of the balance loss over the batch.
      z_loss: coefficient of the mean squared log-sum-exp of the logits.
    """

    experts: int = 8
    top_k: int = 2
    balance: float = 0.01
    z_loss: float = 0.001

    @property
    def chosen(self):
        return self.top_k

    @nn.compact
    def __call__(self, x, context):
        del context
        logits = affinity(self, x, self.experts)
        probabilities = jax.nn.softmax(logits)
        weights, experts = token_choice(probabilities, self.top_k)
        chosen = weights.reshape(*x.shape[:2], self.top_k)
        weights = (chosen / chosen.sum(-1, keepdims=True)).reshape(weights.shape)
        balance = balance_loss(probabilities.reshape(-1, self.experts), experts.reshape(-1))
        z = jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean()
        aux = {"losses": {"balance": self.balance * balance, "z": self.z_loss * z}}
        return Routing(weights, experts, None, self.experts), aux
