"""EC-DiT's expert choice (Sun et al., arXiv 2410.02098; Zhou et al., arXiv 2202.09368)."""

import flax.linen as nn
import jax

from dit_jax.moe.routing import Router, affinity, expert_choice


class ExpertChoiceRouter(Router):
    """Within a sample, each expert takes the tokens of its highest softmax probability.

    Every expert gets N C / E of the N tokens, so the load is even by construction and there is no
    loss; a token may be taken by several experts or by none.

    Attributes:
      experts: number of experts.
      capacity: experts a token, on average (C).
    """

    experts: int = 8
    capacity: float = 1.0

    @property
    def chosen(self):
        return self.capacity

    @nn.compact
    def __call__(self, x, context):
        del context
        probabilities = jax.nn.softmax(affinity(self, x, self.experts))
        return expert_choice(probabilities, int(x.shape[1] / self.experts * self.capacity)), {}
