"""Linear attention by Pallas kernels for a TPU.

Each direction is two passes over blocks of tokens. Forward, the key side sums up a state for each
head and the query side reads it; backward, the query side writes the queries' gradient and sums up
the state's, which the key side turns into the gradients of keys and values. Every array of tokens
is read or written once, so memory bandwidth alone binds.

Tokens lie in lanes, [B H, D, N]: so no lane is empty where a head is narrower than 128, and XLA
chooses the same layout for the projections around it. The state of a head is [D, D + 1] in float32,
sum_t phi(k_t) [v_t, 1]^T; its last column lies in lanes that would be empty.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Interpret = bool | pltpu.InterpretParams

# Elements of an array that are on the chip at once: blocks this large hide the cost of a grid step,
# and twice five of them with float32 temporaries fit into the vector memory of every TPU.
_ELEMENTS = 2**18
# Heads that one grid step takes where there are few tokens; they are unrolled.
_HEADS = 16


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    offset: float,
    eps: float,
    interpret: Interpret = False,
) -> tuple[jax.Array, jax.Array]:
    """Maps q, k, v [B, N, H, D] to the result, alike, and the state [B, H, D, D + 1]."""
    batch, _, heads, _ = q.shape
    q, k, v = (_tokens_in_lanes(x) for x in (q, k, v))
    (state,) = _over_blocks(
        functools.partial(_sum_state, offset),
        (k, v),
        None,
        0,
        makes_state=True,
        interpret=interpret,
    )
    query = functools.partial(_read_state, offset, eps)
    (out,) = _over_blocks(query, (q,), state, 1, makes_state=False, interpret=interpret)
    return _tokens_first(out, heads), state.reshape(batch, heads, *state.shape[1:])


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    state: jax.Array,
    dout: jax.Array,
    *,
    offset: float,
    eps: float,
    interpret: Interpret = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Maps the arguments, the state and the result's gradient to the gradients of q, k and v."""
    heads = q.shape[2]
    q, k, v, dout = (_tokens_in_lanes(x) for x in (q, k, v, dout))
    state = state.reshape(-1, *state.shape[2:])
    query = functools.partial(_query_gradient, offset, eps)
    dq, dstate = _over_blocks(query, (q, dout), state, 1, makes_state=True, interpret=interpret)
    key = functools.partial(_key_gradient, offset)
    dk, dv = _over_blocks(key, (k, v), dstate, 2, makes_state=False, interpret=interpret)
    return tuple(_tokens_first(x, heads) for x in (dq, dk, dv))


def _tokens_in_lanes(x: jax.Array) -> jax.Array:
    """[B, N, H, D] to [B H, D, N]."""
    batch, tokens, heads, width = x.shape
    return x.transpose(0, 2, 3, 1).reshape(batch * heads, width, tokens)


def _tokens_first(x: jax.Array, heads: int) -> jax.Array:
    """Inverse of `_tokens_in_lanes`."""
    return x.reshape(-1, heads, *x.shape[1:]).transpose(0, 3, 1, 2)


def _over_blocks(
    body: Callable,
    arrays: Sequence[jax.Array],
    state: jax.Array | None,
    results: int,
    *,
    makes_state: bool,
    interpret: Interpret,
) -> list[jax.Array]:
    """Runs `body` for each head and block of tokens.

    Args:
      body: (keep, a block [D, T] of each array, the head's state if there is one) to blocks of the
        results and, with `makes_state`, an addend [D, D] and one [D, 1] of the head's new state.
      arrays: arrays of tokens [B H, D, N], of one dtype.
      state: what the body reads, [B H, D, D + 1], or None.
      results: number of arrays of tokens to write.
      makes_state: sum up a state over the blocks.
      interpret: run on the CPU, for tests.

    Returns:
      The results [B H, D, N] and the new state if there is one.
    """
    heads, width, tokens = arrays[0].shape
    group, block = _blocks(heads, width, tokens)
    array_spec = pl.BlockSpec((group, width, block), lambda i, j: (i, 0, j))
    state_spec = pl.BlockSpec((group, width, width + 1), lambda i, j: (i, 0, 0))
    state_shape = jax.ShapeDtypeStruct((heads, width, width + 1), jnp.float32)
    array_shape = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
    operands = [*arrays] if state is None else [*arrays, state]
    out_shape = [array_shape] * results + [state_shape] * makes_state

    def kernel(*refs: jax.Ref) -> None:
        inputs, outputs = refs[: len(operands)], refs[len(operands) :]
        if makes_state:

            @pl.when(pl.program_id(1) == 0)
            def _() -> None:
                outputs[-1][...] = jnp.zeros_like(outputs[-1])

        start = pl.program_id(1) * block
        keep = functools.partial(_keep, start, tokens) if tokens % block else lambda x: x
        for head in range(group):
            found = body(keep, *(ref[head] for ref in inputs))
            for ref, value in zip(outputs[:results], found):
                ref[head] = value.astype(ref.dtype)
            if makes_state:
                outputs[-1][head, :, :-1] += found[results]
                outputs[-1][head, :, -1:] += found[results + 1]

    # One a result, one a new state; and where a state is read as well, the forward product again.
    products = results + makes_state * (1 if state is None else 2)
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(heads, group), pl.cdiv(tokens, block)),
        in_specs=[array_spec] * len(arrays) + [state_spec] * (state is not None),
        out_specs=[array_spec] * results + [state_spec] * makes_state,
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * arrays[0].size * (width + 1),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in operands + out_shape),
            transcendentals=0,
        ),
        interpret=interpret,
    )(*operands)


def _blocks(heads: int, width: int, tokens: int) -> tuple[int, int]:
    """Heads and tokens of a grid step; blocks of tokens are lane tiles, or all tokens."""
    largest = max(_ELEMENTS // width // 128 * 128, 128)
    block = min(tokens, largest)
    return min(heads, largest // block, _HEADS), block


def _keep(start: jax.Array, tokens: int, x: jax.Array) -> jax.Array:
    """Zeros where a block [D, T] reaches beyond the last token: anything may lie there."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where(start + lane < tokens, x.astype(jnp.float32), 0).astype(x.dtype)


def _sum_state(offset, keep, k, v):
    features = keep(_features(k, offset))
    return _product(features, keep(v), 1, 1, k.dtype), features.sum(1, keepdims=True)


def _read_state(offset, eps, keep, q, state):
    del keep  # What lies beyond the last token is computed, and not written.
    return (_meet(_features(q, offset), state, eps, q.dtype)[0],)


def _query_gradient(offset, eps, keep, q, dout, state):
    q, dout = keep(q), keep(dout).astype(jnp.float32)
    features = _features(q, offset)
    out, scale = _meet(features, state, eps, q.dtype)
    dnumerator = dout * scale
    ddenominator = -(dnumerator * out).sum(0, keepdims=True)
    dfeatures = _product(state[:, :-1], dnumerator, 1, 0, q.dtype) + state[:, -1:] * ddenominator
    dkv = _product(features, dnumerator, 1, 1, q.dtype)
    return _through_relu(q, dfeatures), dkv, (features * ddenominator).sum(1, keepdims=True)


def _key_gradient(offset, keep, k, v, dstate):
    del keep
    dfeatures = _product(dstate[:, :-1], v, 1, 0, k.dtype) + dstate[:, -1:]
    dv = _product(dstate[:, :-1], _features(k, offset), 0, 0, k.dtype)
    return _through_relu(k, dfeatures), dv


def _features(x: jax.Array, offset: float) -> jax.Array:
    return jnp.maximum(x.astype(jnp.float32), 0) + offset


def _through_relu(x: jax.Array, dfeatures: jax.Array) -> jax.Array:
    return jnp.where(x.astype(jnp.float32) > 0, dfeatures, 0)


def _meet(features: jax.Array, state: jax.Array, eps: float, dtype) -> tuple[jax.Array, jax.Array]:
    """The result [D, T] and one over its denominator [1, T]."""
    scale = 1 / ((state[:, -1:] * features).sum(0, keepdims=True) + eps)
    return _product(state[:, :-1], features, 0, 0, dtype) * scale, scale


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int, dtype) -> jax.Array:
    """Contracts two matrices, rounded to the tokens' dtype first, with a float32 result."""
    exact = dtype == jnp.float32
    return jax.lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((axis_a,), (axis_b,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
