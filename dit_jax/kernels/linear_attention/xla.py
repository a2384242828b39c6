"""Linear attention as matrix products for XLA.

The state of a head is [D, D + 1] in float32: sum_t phi(k_t) [v_t, 1]^T.
"""

import jax
import jax.numpy as jnp


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, *, offset: float, eps: float
) -> tuple[jax.Array, jax.Array]:
    """Maps q, k, v [B, N, H, D] to the result, alike, and the state [B, H, D, D + 1]."""
    q, k, v = _heads_first(q, k, v)
    k = _features(k, offset)
    state = _state(_product("bhnd,bhne->bhde", k, v), k.sum(2, dtype=jnp.float32))
    numerator, denominator = _meet(_features(q, offset), state, eps)
    return (numerator / denominator).astype(v.dtype).swapaxes(1, 2), state


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    state: jax.Array,
    dout: jax.Array,
    *,
    offset: float,
    eps: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Maps the arguments, the state and the result's gradient to the gradients of q, k and v."""
    q, k, v, dout = _heads_first(q, k, v, dout)
    q_features, k_features = _features(q, offset), _features(k, offset)

    numerator, denominator = _meet(q_features, state, eps)
    dnumerator = dout / denominator
    ddenominator = -(dnumerator * numerator / denominator).sum(-1)
    dnumerator = dnumerator.astype(dout.dtype)
    kv, k_sum = state[..., :-1].astype(q.dtype), state[..., -1]
    dq = _product("bhne,bhde->bhnd", dnumerator, kv)
    dq += ddenominator[..., None] * k_sum[:, :, None]
    dstate = _state(
        _product("bhnd,bhne->bhde", q_features, dnumerator),
        jnp.einsum("bhnd,bhn->bhd", q_features.astype(jnp.float32), ddenominator),
    )

    dkv, dk_sum = dstate[..., :-1].astype(k.dtype), dstate[..., -1]
    dk = _product("bhne,bhde->bhnd", v, dkv) + dk_sum[:, :, None]
    dv = _product("bhnd,bhde->bhne", k_features, dkv).astype(v.dtype)
    dq, dk = jnp.where(q > 0, dq, 0).astype(q.dtype), jnp.where(k > 0, dk, 0).astype(k.dtype)
    return _heads_first(dq, dk, dv)


def _heads_first(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Swaps axes of tokens and heads: a CPU is slow over a batch axis that lies inside."""
    return tuple(x.swapaxes(1, 2) for x in arrays)


def _features(x: jax.Array, offset: float) -> jax.Array:
    return jax.nn.relu(x) + jnp.asarray(offset, x.dtype)


def _product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)


def _state(kv: jax.Array, k_sum: jax.Array) -> jax.Array:
    return jnp.concatenate([kv, k_sum[..., None]], axis=-1)


def _meet(features: jax.Array, state: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """Numerator [B, H, N, D] and denominator [B, H, N, 1] of the result, float32."""
    numerator = _product("bhnd,bhde->bhne", features, state[..., :-1].astype(features.dtype))
    k_sum = state[..., -1:]
    return numerator, _product("bhnd,bhde->bhne", features.astype(jnp.float32), k_sum) + eps
