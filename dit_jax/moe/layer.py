"""A mixture-of-experts layer, in place of a dense channel mixer."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.layers.context import Context
from dit_jax.moe.dispatch import Dispatch, Ragged
from dit_jax.moe.experts import Experts
from dit_jax.moe.routing import Router, Routing


class MoE(nn.Module):
    """Experts that a router gives tokens to, beside a dense layer that all tokens pass.

    Attributes:
      router: which token goes to which expert.
      experts: what an expert computes.
      shared: a channel mixer that is added for every token, or None.
      dispatch: how tokens travel.
    """

    router: Router
    experts: Experts
    shared: nn.Module | None = None
    dispatch: Dispatch = dataclasses.field(default_factory=Ragged)

    @property
    def active(self) -> float:
        """Share of the experts that a token meets, on average."""
        return self.router.chosen / self.router.count

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        """Maps tokens [B, N, D] to tokens [B, N, D] and aux.

        aux has the router's `losses`, `metrics` of the load, and the `routing` itself.
        """
        routing, aux = self.router(x, context)
        params = self.experts(routing.count, x.shape[-1])
        groups = x.reshape(len(routing.experts), -1, x.shape[-1])
        y, dropped = self.dispatch(groups, routing, params, self.experts.compute)
        y = y.reshape(x.shape)
        if self.shared is not None:
            y += self.shared(x, context)[0]
        metrics = load_metrics(routing) | {"moe_dropped": dropped}
        return y, aux | {"metrics": metrics, "routing": routing}


def load_metrics(routing: Routing) -> dict[str, jax.Array]:
    """How evenly the experts are used.

    `moe_max_load` is the largest load over the mean one: 1 is even. `moe_entropy` is that of the
    loads over its maximum: 1 is even, 0 is one expert alone.
    """
    loads = routing.loads()
    shares = loads / loads.sum().clip(1)
    entropy = -jnp.sum(shares * jnp.log(shares.clip(1e-9)))
    return {
        "moe_max_load": shares.max() * routing.count,
        "moe_entropy": entropy / jnp.log(max(routing.count, 2)),
    }
