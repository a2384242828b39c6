"""Dropless: slots sorted by expert, one grouped product, and back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from dit_jax.kernels.grouped_matmul import grouped_matmul
from dit_jax.moe.dispatch.dispatch import Dispatch, combine, token_of_slot
from dit_jax.moe.dispatch.exchange import across_experts
from dit_jax.moe.dispatch.rows import permute, sort_by_expert


@dataclasses.dataclass(frozen=True)
class Ragged(Dispatch):
    """Every expert gets exactly the tokens that were routed to it, however many (arXiv 2211.15841).

    Nothing is dropped and nothing is computed twice. Over devices with an expert axis, rows travel
    to their expert's device and back.
    """

    def __call__(self, x, routing, params, compute):
        return across_experts(_local, x, routing, params, compute)


def _local(x, routing, params, compute, exchange):
    tokens, width = x.shape[1:]
    order, place = sort_by_expert(routing.experts.reshape(-1))
    rows = _to_rows(x.reshape(-1, width), routing, tokens, order, place)
    sizes = jnp.bincount(routing.experts.reshape(-1), length=routing.count)
    rows = exchange.apply(functools.partial(_experts, compute), params, rows, sizes)
    return combine(permute(rows, place, order), routing, tokens), jnp.zeros(())


def _experts(compute, params, rows, sizes, exact):
    """Applies experts to rows [R, D] sorted by expert, `sizes` [E] of each; the rest gives 0.

    With `exact`, there is no rest.
    """
    # Rows that belong to nobody, after the last group, are given no bias either.
    expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(len(rows)), side="right")

    def dot(x: jax.Array, layer: dict) -> jax.Array:
        kernel = layer["kernel"].astype(x.dtype)
        count, width = kernel.shape[:2]
        y = grouped_matmul(x, kernel.reshape(count, width, -1), sizes, exact)
        if "bias" in layer:
            bias = layer["bias"].astype(x.dtype).reshape(count, -1)
            y += jnp.take(bias, expert, axis=0, mode="fill", fill_value=0)
        return y

    return compute(params, rows, dot)


def _to_rows(x, routing, tokens: int, order, place) -> jax.Array:
    """Rows [S, D], sorted by expert, of tokens [T, D]."""
    if routing.tokens is not None:
        return x[token_of_slot(routing, tokens).reshape(-1)[order]]
    slots = routing.experts.shape[1] // tokens
    return permute(jnp.repeat(x, slots, axis=0), order, place)
