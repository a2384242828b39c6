"""The forward kernel: one step has some blocks of queries, and walks through their lists."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dit_jax.kernels.block_sparse.operands import MASKED
from dit_jax.kernels.block_sparse.tpu.plan import Plan
from dit_jax.kernels.block_sparse.tpu.tiles import (
    QuerySteps,
    as_row,
    coarse_logits,
    key_tile,
    matmul,
    tile_logits,
)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, plan: Plan, coarse: list, interpret: Any
) -> tuple[jax.Array, jax.Array]:
    """Attention [BH, N, D] and log-sum-exp [BH, N] of queries, keys and values [BH, ., D]."""
    steps = QuerySteps(q, k, plan, coarse)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, steps=steps),
        grid=steps.grid,
        in_specs=steps.specs(rows=(q,), whole=(k, v)),
        out_specs=(steps.rows(q.shape[-1]), steps.statistic()),
        out_shape=(
            jax.ShapeDtypeStruct(q.shape, v.dtype),
            jax.ShapeDtypeStruct(steps.statistic_shape, jnp.float32),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=steps.vmem
        ),
        cost_estimate=steps.cost(products=2),
        interpret=interpret,
        name="block_sparse_forward",
    )(*steps.operands, q, k, v)
    return out, lse.reshape(q.shape[:2])


def _kernel(*refs: Any, steps: QuerySteps) -> None:
    operands, (q_ref, k_ref, v_ref, out_ref, lse_ref) = steps.unpack(refs)
    blocks = range(steps.blocks)
    queries = [q_ref[0, steps.block(i)] for i in blocks]
    states = [_start(queries[i], operands, i, steps) for i in blocks]

    def tile(number: jax.Array | int, states: list) -> list:
        new = []
        for i in blocks:
            keys, values = key_tile(operands, i, number, steps, k_ref, v_ref)
            logits = tile_logits(queries[i], keys, operands, i, number, steps)
            new.append(_update(states[i], logits, values))
        return new

    states = steps.walk(operands, tile, states)
    for i in blocks:
        _, total, mixed = states[i]
        out_ref[0, steps.block(i)] = (mixed / total).astype(out_ref.dtype)
    lse_ref[0, 0] = as_row(jnp.concatenate([m + jnp.log(total) for m, total, _ in states]))


def _start(q: jax.Array, operands: Any, i: int, steps: QuerySteps) -> tuple:
    """Running maximum [n, 1], sum [n, 1] and mixed values [n, D], after the coarse keys."""
    rows, width = q.shape
    empty = (
        jnp.full((rows, 1), MASKED, jnp.float32),
        jnp.zeros((rows, 1), jnp.float32),
        jnp.zeros((rows, width), jnp.float32),
    )
    if not steps.coarse:
        return empty
    logits = [coarse_logits(q, keys, i, steps) for keys in operands.coarse]
    values = [keys.v[0, 0] for keys in operands.coarse]
    return _update(empty, jnp.concatenate(logits, axis=1), jnp.concatenate(values))


def _update(state: tuple, logits: jax.Array, values: jax.Array) -> tuple:
    """One step of the online softmax."""
    maximum, total, mixed = state
    new = jnp.maximum(maximum, logits.max(axis=1, keepdims=True))
    weights, decay = jnp.exp(logits - new), jnp.exp(maximum - new)
    total = decay * total + weights.sum(axis=1, keepdims=True)
    mixed = decay * mixed + matmul(weights.astype(values.dtype), values, ((1,), (0,)))
    return new, total, mixed
