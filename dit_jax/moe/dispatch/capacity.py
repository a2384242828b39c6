"""A fixed number of places an expert: static shapes, and what does not fit is dropped."""

import dataclasses

import jax
import jax.numpy as jnp

from dit_jax.moe.dispatch.dispatch import Dispatch, combine, token_of_slot
from dit_jax.moe.dispatch.exchange import across_experts


@dataclasses.dataclass(frozen=True)
class Capacity(Dispatch):
    """Each expert has places for `factor` times an even share of the slots.

    Slots take places in the order of tokens, but all first choices before second ones (GShard,
    arXiv 2006.16668). What finds none is left out of the token's sum and counted. Places are
    counted on each device for itself.

    Attributes:
      factor: places over an even share.
    """

    factor: float = 1.25

    def __call__(self, x, routing, params, compute):
        return across_experts(self._local, x, routing, params, compute)

    def _local(self, x, routing, params, compute, exchange):
        tokens, width = x.shape[1:]
        experts = routing.experts.reshape(-1)
        places = max(1, int(self.factor * len(experts) / routing.count))
        place = _place(routing, tokens)
        fits = (place < places) & (experts < routing.count)
        target = jnp.where(fits, experts * places + place, routing.count * places)

        source = (
            jnp.full(routing.count * places + 1, len(experts))
            .at[target]
            .set(jnp.arange(len(experts)))[:-1]
        )
        token = jnp.append(token_of_slot(routing, tokens).reshape(-1), x.shape[0] * tokens)[source]
        rows = jnp.take(x.reshape(-1, width), token, axis=0, mode="fill", fill_value=0)
        rows = exchange.to_experts(rows.reshape(routing.count, places, width))
        rows = exchange.from_experts(compute(params, rows, _dot))
        y = jnp.take(rows.reshape(-1, width), target, axis=0, mode="fill", fill_value=0)
        used = experts < routing.count
        dropped = exchange.mean(jnp.sum(used & ~fits)) / exchange.mean(jnp.sum(used)).clip(1)
        return combine(y, routing, tokens), dropped


def _place(routing, tokens: int) -> jax.Array:
    """Each slot's number among the slots of its expert, [G S]: first choices come first."""
    experts = routing.experts.reshape(-1)
    slots = jnp.arange(len(experts))
    choices = routing.experts.shape[1] // tokens if routing.tokens is None else 1
    order = jnp.lexsort((slots // choices, slots % choices, experts))
    sizes = jnp.bincount(experts, length=routing.count + 1)
    number = slots - (jnp.cumsum(sizes) - sizes)[experts[order]]
    return jnp.zeros_like(number).at[order].set(number)


def _dot(x, layer):
    kernel = layer["kernel"].astype(x.dtype)
    y = jnp.einsum("ecd,edf->ecf", x, kernel.reshape(*kernel.shape[:2], -1))
    return y + layer["bias"].astype(x.dtype)[:, None] if "bias" in layer else y
