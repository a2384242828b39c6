"""The gradient of queries and of coarse keys and values: a step has some blocks of queries."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dit_jax.kernels.block_sparse.tpu.plan import Plan
from dit_jax.kernels.block_sparse.tpu.tiles import (
    CoarseRefs,
    QuerySteps,
    as_column,
    coarse_logits,
    key_tile,
    matmul,
    tile_logits,
)


def query_gradient(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    plan: Plan,
    coarse: list,
    dout: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    interpret: Any,
) -> tuple[jax.Array, ...]:
    """Gradients of `q` [BH, N, D] and, in float32, of each set's coarse keys, values [BH, G, C, D].

    Args:
      q: queries [BH, N, D].
      k: keys [BH, M, D].
      v: values [BH, M, D].
      plan: layout of the lists.
      coarse: sets of coarse keys, values and weights.
      dout: cotangent of the attention, [BH, N, D].
      lse: log-sum-exp of the logits, [BH, N].
      delta: what the softmax takes from its cotangent, [BH, N].
      interpret: run without a TPU.
    """
    steps = QuerySteps(q, k, plan, coarse)
    specs = [steps.rows(q.shape[-1])]
    shapes = [jax.ShapeDtypeStruct(q.shape, q.dtype)]
    for k_coarse, *_ in coarse:
        specs += [steps.groups(k_coarse)] * 2
        shapes += [jax.ShapeDtypeStruct(k_coarse.shape, jnp.float32)] * 2
    lse, delta = (x.reshape(steps.statistic_shape) for x in (lse, delta))
    return pl.pallas_call(
        functools.partial(_kernel, steps=steps),
        grid=steps.grid,
        in_specs=[
            *steps.specs(rows=(q, dout), whole=(k, v)),
            steps.statistic(),
            steps.statistic(),
        ],
        out_specs=specs,
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=steps.vmem
        ),
        cost_estimate=steps.cost(products=3),
        interpret=interpret,
        name="block_sparse_query_gradient",
    )(*steps.operands, q, dout, k, v, lse, delta)


def _kernel(*refs: Any, steps: QuerySteps) -> None:
    operands, (q_ref, dout_ref, k_ref, v_ref, lse_ref, delta_ref, dq_ref, *coarse_refs) = (
        steps.unpack(refs)
    )
    blocks = range(steps.blocks)
    lse, delta = as_column(lse_ref[0, 0]), as_column(delta_ref[0, 0])
    queries = [
        (q_ref[0, rows], dout_ref[0, rows], lse[rows], delta[rows])
        for rows in (steps.block(i) for i in blocks)
    ]

    def tile(number: jax.Array | int, gradients: list) -> list:
        new = []
        for i in blocks:
            keys, values = key_tile(operands, i, number, steps, k_ref, v_ref)
            logits = tile_logits(queries[i][0], keys, operands, i, number, steps)
            _, dlogits = _softmax_gradient(logits, values, *queries[i][1:])
            new.append(gradients[i] + matmul(dlogits.astype(keys.dtype), keys, ((1,), (0,))))
        return new

    zero = jnp.zeros((steps.plan.query_block, steps.width), jnp.float32)
    gradients = [zero for _ in blocks]
    for number, keys in enumerate(operands.coarse):
        refs = coarse_refs[2 * number : 2 * number + 2]

        @pl.when(steps.starts_group(number))
        def _(refs=refs):
            # Steps of one group come one after another, and keep its sums in VMEM.
            for ref in refs:
                ref[...] = jnp.zeros_like(ref)

        for i in blocks:
            gradients[i] += _coarse_gradient(queries[i], keys, i, steps, *refs)
    gradients = steps.walk(operands, tile, gradients)
    for i in blocks:
        dq_ref[0, steps.block(i)] = (gradients[i] * steps.scale).astype(dq_ref.dtype)


def _coarse_gradient(
    query: tuple, coarse: CoarseRefs, i: int, steps: QuerySteps, dk_ref: Any, dv_ref: Any
) -> jax.Array:
    """The coarse keys' part of the query gradient; adds to the gradients of coarse keys, values."""
    q, dout, lse, delta = query
    keys, values = coarse.k[0, 0], coarse.v[0, 0]
    logits = coarse_logits(q, coarse, i, steps)
    weights, dlogits = _softmax_gradient(logits, values, dout, lse, delta)
    dlogits = dlogits.astype(keys.dtype)
    dk = matmul(dlogits, q, ((0,), (0,))) * steps.scale
    dv = matmul(weights.astype(values.dtype), dout, ((0,), (0,)))
    dk_ref[0, 0] += dk
    dv_ref[0, 0] += dv
    return matmul(dlogits, keys, ((1,), (0,)))


def _softmax_gradient(logits, values, dout, lse, delta) -> tuple[jax.Array, jax.Array]:
    """Softmax weights, and the gradient of the logits."""
    weights = jnp.exp(logits - lse)
    dweights = matmul(dout, values, ((1,), (1,)))
    return weights, weights * (dweights - delta)
