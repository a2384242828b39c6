"""What a router decides: which token goes to which expert, and with what weight."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.layers.context import Context


@flax.struct.dataclass
class Routing:
    """Slots, each of which sends one token to one expert.

    Tokens lie in G groups of M: samples, or for routers that compare the tokens of several
    samples, pools of them. A slot's token is one of its group's.

    Attributes:
      weights: factor of each slot's result, [G, S] float32.
      experts: each slot's expert, [G, S] int32; `count` for a slot that is not used.
      tokens: each slot's token within its group, [G, S] int32; None where every token has the same
        number of slots, one after another.
      count: number of experts, static.
    """

    weights: jax.Array
    experts: jax.Array
    tokens: jax.Array | None
    count: int = flax.struct.field(pytree_node=False)

    def loads(self) -> jax.Array:
        """Number of slots of each expert, [count] float32."""
        return jax.nn.one_hot(self.experts, self.count, dtype=jnp.float32).sum((0, 1))


class Router(nn.Module):
    """Base of all routers: a rule for which tokens meet which experts, with what it has to learn.

    A router knows nothing of how tokens travel (`dispatch`), nor of what experts do.

    Attributes:
      experts: number of experts that are chosen between.
    """

    experts: int

    @property
    def count(self) -> int:
        """Number of experts, those included that no token has to compete for."""
        return self.experts

    @property
    def chosen(self) -> float:
        """Experts that a token meets, on average."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, context: Context) -> tuple[Routing, dict[str, Any]]:
        """Routes tokens [B, N, D].

        Returns:
          The routing, and aux: `losses` and `statistics`, scalars (`models.Output`), where there
          are any.
        """
        raise NotImplementedError


def affinity(router: nn.Module, x: jax.Array, experts: int, init: Any = None) -> jax.Array:
    """Logits [B, N, E] of tokens [B, N, D] by one matrix of the calling router, in float32.

    Rounding decides between experts whose logits are close, so this is not the place to save.
    """
    # PyTorch's default for a linear layer, which the released MoE gates start from.
    init = init or nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    kernel = router.param("kernel", init, (x.shape[-1], experts))
    return x.astype(jnp.float32) @ kernel


def token_choice(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Each token takes the k experts of its highest scores [B, N, E]; of equal ones, the first.

    Returns:
      Scores and experts of the slots, [B, N k]: a token's slots follow one another, best first.

    Raises:
      InputError: there are not k experts.
    """
    if not 1 <= k <= scores.shape[-1]:
        raise InputError(f"top-k is {k} and there are {scores.shape[-1]} experts: choose 1 to all")
    values, experts = jax.lax.top_k(scores, k)
    return values.reshape(len(scores), -1), experts.reshape(len(scores), -1).astype(jnp.int32)


def expert_choice(scores: jax.Array, k: int) -> Routing:
    """Each expert takes the k tokens of a group with its highest scores [G, M, E].

    A token may be taken by several experts or by none; of equal scores the first token is taken.

    Raises:
      InputError: there are not k tokens.
    """
    groups, tokens, experts = scores.shape
    if not 1 <= k <= tokens:
        raise InputError(
            f"each of {experts} experts would take {k} of {tokens} tokens: change the capacity"
        )
    weights, tokens = jax.lax.top_k(scores.swapaxes(1, 2), k)
    owners = jnp.broadcast_to(jnp.arange(experts, dtype=jnp.int32)[:, None], (experts, k))
    return Routing(
        weights.reshape(groups, -1),
        jnp.broadcast_to(owners.reshape(-1), (groups, experts * k)),
        tokens.reshape(groups, -1).astype(jnp.int32),
        experts,
    )


def balance_loss(probabilities: jax.Array, experts: jax.Array) -> jax.Array:
    """E sum_i f_i P_i: 1 for an even load, E when one expert gets everything.

    f_i is the share of the slots that chose expert i, P_i its mean probability (Switch Transformer,
    arXiv 2101.03961, eq. 4). The gradient flows through P alone.

    Args:
      probabilities: [..., N, E].
      experts: [..., S] int32.

    Returns:
      One loss for each leading index: [...].
    """
    count = probabilities.shape[-1]
    share = jax.nn.one_hot(experts, count, dtype=jnp.float32).mean(-2)
    return count * jnp.sum(share * probabilities.mean(-2), axis=-1)
