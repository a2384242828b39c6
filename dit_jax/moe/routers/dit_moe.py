"""DiT-MoE's gate (Fei et al., arXiv 2407.11633)."""

import flax.linen as nn
import jax

from dit_jax.moe.routing import Router, Routing, affinity, balance_loss, token_choice


class DiTMoERouter(Router):
    """Softmax over experts; the top k keep their probabilities as they are, which sum to under 1.

    Attributes:
      experts: number of experts.
      top_k: experts a token.
      balance: coefficient of the balance loss, which is this when all experts are used alike.
      per_sample: balance the experts within each sample, rather than over the batch.
    """

    experts: int = 8
    top_k: int = 2
    balance: float = 0.01
    per_sample: bool = False

    @property
    def chosen(self):
        return self.top_k

    @nn.compact
    def __call__(self, x, context):
        del context
        probabilities = jax.nn.softmax(affinity(self, x, self.experts))
        weights, experts = token_choice(probabilities, self.top_k)
        if self.per_sample:
            loss = balance_loss(probabilities, experts).mean()
        else:
            loss = balance_loss(probabilities.reshape(-1, self.experts), experts.reshape(-1))
        aux = {"losses": {"balance": self.balance * loss}}
        return Routing(weights, experts, None, self.experts), aux
