"""DiffMoE's batch-level expert choice (Shi et al., arXiv 2503.14487)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dit_jax.errors import InputError
from dit_jax.layers.linear import linear
from dit_jax.moe.routing import Router, Routing, affinity, expert_choice
from dit_jax.moe.statistics import moved_by


class DiffMoERouter(Router):
    """Each expert takes the tokens of its highest probability from a pool of samples.

    How many a sample gets thus depends on the other samples and their noise. For sampling, when
    the batch is another, a predictor learns which tokens are taken, from the tokens alone: each
    expert then takes as many as its predictor puts above a threshold, which is an average over
    training of the lowest value that was taken.

    Attributes:
      experts: number of experts.
      capacity: experts a token, on average.
      pools: parts that a training batch is divided into, each a pool; a multiple of the number of
        devices that share it. A batch to sample from is one pool.
      threshold_decay: of the thresholds' average.
    """

    experts: int = 8
    capacity: float = 1.0
    pools: int = 1
    threshold_decay: float = 0.95

    @property
    def chosen(self):
        return self.capacity

    @nn.compact
    def __call__(self, x, context):
        pools = self.pools if context.train else 1
        if len(x) % pools:
            raise InputError(f"a batch of {len(x)} does not divide into {pools} pools")
        normal = nn.initializers.normal(0.006)
        x = x.reshape(pools, -1, x.shape[-1])
        probabilities = jax.nn.softmax(affinity(self, x, self.experts, normal))
        hidden = nn.silu(linear(x.shape[-1], jax.lax.stop_gradient(x), "predictor_fc1"))
        predicted = linear(self.experts, hidden, "predictor_fc2").astype(jnp.float32)
        threshold = self.param("threshold_statistic", nn.initializers.zeros, (self.experts,))
        if not context.train:
            return _above(probabilities, jax.nn.sigmoid(predicted) > threshold), {}
        taken = int(x.shape[1] / self.experts * self.capacity)
        routing = expert_choice(probabilities, taken)
        target = jnp.zeros(probabilities.shape)
        target = target.at[jnp.arange(pools)[:, None], routing.tokens, routing.experts].set(1)
        capacity = optax.sigmoid_binary_cross_entropy(predicted, target).mean()
        lowest = jax.lax.top_k(jax.nn.sigmoid(predicted).swapaxes(1, 2), taken)[0][..., -1].mean(0)
        step = (1 - self.threshold_decay) * (threshold - lowest)
        moves = {"threshold": moved_by(threshold, step)}
        return routing, {"losses": {"capacity": capacity}, "statistics": moves}


def _above(probabilities: jax.Array, taken: jax.Array) -> Routing:
    """Each expert takes, by probability, as many tokens [G, M, E] as are marked for it."""
    tokens, experts = probabilities.shape[1:]
    every = expert_choice(probabilities, tokens)
    rank = jnp.arange(tokens * experts) % tokens
    used = rank < jnp.repeat(taken.sum(1), tokens, axis=1)
    return every.replace(experts=jnp.where(used, every.experts, experts))
