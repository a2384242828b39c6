"""How tokens travel to their experts: one way a file, which agree."""

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dit_jax.moe.experts import Dot, Params
from dit_jax.moe.routing import Routing

# compute(params, rows, dot), as `Experts.compute`.
Compute = Callable[[Params, jax.Array, Dot], jax.Array]


@dataclasses.dataclass(frozen=True)
class Dispatch(abc.ABC):
    """A way to apply experts to the tokens that were routed to them.

    Fields are its configuration.
    """

    @abc.abstractmethod
    def __call__(
        self, x: jax.Array, routing: Routing, params: Params, compute: Compute
    ) -> tuple[jax.Array, jax.Array]:
        """Applies experts and adds their results up, token by token.

        Args:
          x: tokens [G, M, D], in the groups of the routing.
          routing: which token goes where.
          params: the experts' parameters, the expert as axis 0.
          compute: what an expert computes.

        Returns:
          [G, M, D], and the share of used slots that were dropped, a scalar.
        """


def token_of_slot(routing: Routing, tokens: int) -> jax.Array:
    """The token of each slot [G, S] among all tokens of all groups, of `tokens` each."""
    groups, slots = routing.experts.shape
    start = jnp.arange(groups, dtype=jnp.int32)[:, None] * tokens
    if routing.tokens is None:
        return start + jnp.arange(slots, dtype=jnp.int32) // (slots // tokens)
    return start + routing.tokens


def combine(y: jax.Array, routing: Routing, tokens: int) -> jax.Array:
    """Adds up weighted results of slots [G S, D] for each token: [G, M, D].

    Weights and sums are float32.
    """
    groups, slots = routing.experts.shape
    weighted = y.astype(jnp.float32) * routing.weights.reshape(-1, 1)
    if routing.tokens is None:
        return weighted.reshape(groups, tokens, slots // tokens, -1).sum(2).astype(y.dtype)
    total = jnp.zeros((groups * tokens, y.shape[-1]), jnp.float32)
    total = total.at[token_of_slot(routing, tokens).reshape(-1)].add(weighted)
    return total.reshape(groups, tokens, -1).astype(y.dtype)
