import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from dit_jax.attention import Full


def qkv(batch=2, tokens=6, heads=3, width=4, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [
        (scale * rng.normal(size=(batch, tokens, heads, width))).astype(np.float32) for _ in "qkv"
    ]


def naive(q, k, v):
    """softmax(q k^T / sqrt(Dh)) v by loops, in float64."""
    out = np.zeros(q.shape)
    for b, n, h in np.ndindex(*q.shape[:3]):
        scores = [np.dot(np.float64(q[b, n, h]), k[b, m, h]) for m in range(k.shape[1])]
        weights = np.exp(np.array(scores) / np.sqrt(q.shape[-1]))
        for m in range(k.shape[1]):
            out[b, n, h] += weights[m] / weights.sum() * v[b, m, h]
    return out


@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (1, 1, 1, 2), (1, 9, 2, 8)])
def test_equals_a_loop(shape):
    q, k, v = qkv(*shape)
    mixed = Full()(q, k, v, (1, shape[1]))
    assert mixed.dtype == jnp.float32
    # float32 against float64.
    np.testing.assert_allclose(mixed, naive(q, k, v), rtol=1e-5, atol=1e-6)


def test_permuting_the_tokens_permutes_the_result():
    q, k, v = qkv()
    order = np.random.default_rng(1).permutation(6)
    mixed = np.asarray(Full()(q, k, v, (2, 3)))
    moved = Full()(q[:, order], k[:, order], v[:, order], (2, 3))
    np.testing.assert_allclose(moved, mixed[:, order], rtol=1e-5, atol=1e-6)
    # The order of keys alone does not matter.
    same = Full()(q, k[:, order], v[:, order], (2, 3))
    np.testing.assert_allclose(same, mixed, rtol=1e-5, atol=1e-6)


def test_large_logits_pick_the_largest():
    q, k, v = qkv(scale=1.0)
    mixed = Full()(1e4 * q, k, v, (2, 3))
    best = np.einsum("bqhd,bkhd->bqhk", q, k).argmax(-1)
    for b, n, h in np.ndindex(2, 6, 3):
        np.testing.assert_allclose(mixed[b, n, h], v[b, best[b, n, h], h], rtol=1e-5)


def test_bfloat16_has_a_float32_softmax():
    # All scores are near 32, where a bfloat16 is known to 0.1 only: a softmax in bfloat16 would be
    # off by some 10 %. What may be off is the rounding of weights and result, 2^-9 each.
    q, k, v = qkv()
    q[..., 0] = k[..., 0] = 8
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in (q, k, v))
    mixed = Full()(q, k, v, (2, 3))
    assert mixed.dtype == jnp.bfloat16
    expected = naive(*(np.asarray(a, np.float32) for a in (q, k, v)))
    largest = np.abs(v.astype(jnp.float32)).max()
    assert np.abs(mixed.astype(jnp.float32) - expected).max() < 2**-7 * largest


def test_gradients_equal_finite_differences():
    q, k, v = qkv(tokens=3, heads=1, batch=1)
    loss = lambda q, k, v: jnp.sin(Full()(q, k, v, (1, 3))).sum()  # noqa: E731
    jax.test_util.check_grads(loss, (q, k, v), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
