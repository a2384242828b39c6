"""A router for the pieces of a dense layer (after Dense2MoE, Zheng et al., arXiv 2510.09094)."""

import flax.linen as nn
import jax

from dit_jax.moe.routing import Router, Routing, affinity, balance_loss, token_choice


class Dense2MoERouter(Router):
    """Softmax over experts; the top k are weighted by their probabilities times their number.

    Experts cut from one dense layer add up to it where every weight is one, so that is where the
    weights start: the matrix is so small at first that all experts are all but equally probable.
    They stay near one on average as long as the balance loss keeps the experts in use, and follow
    the diffusion loss from the first step. (The paper's abstract states the balance loss; the form
    of the weights and its coefficient are chosen here.)

    Attributes:
      experts: number of experts.
      top_k: experts a token.
      balance: coefficient of the balance loss over the batch.
    """

    experts: int = 12
    top_k: int = 2
    balance: float = 0.01

    @property
    def chosen(self):
        return self.top_k

    @nn.compact
    def __call__(self, x, context):
        del context
        # Tokens of unit variance get logits of standard deviation 0.01.
        small = nn.initializers.variance_scaling(1e-4, "fan_in", "normal")
        probabilities = jax.nn.softmax(affinity(self, x, self.experts, small))
        values, experts = token_choice(probabilities, self.top_k)
        balance = balance_loss(probabilities.reshape(-1, self.experts), experts.reshape(-1))
        aux = {"losses": {"balance": self.balance * balance}}
        return Routing(self.experts * values, experts, None, self.experts), aux
