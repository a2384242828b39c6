import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.attention import LinearAttention
from dit_jax.attention.linear import focus
from dit_jax.flops import count_flops
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, use_layout

GRID = (3, 5)


def qkv(batch=2, heads=2, width=4, tokens=15, dtype=np.float32):
    rng = np.random.default_rng(0)
    shape = batch, tokens, heads, width
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3)]


def focused(x, power):
    """FLatten's formula as it stands: |y| / |y^p| y^p of y = relu(x), in float64."""
    y = np.maximum(np.asarray(x, np.float64), 0)
    turned = y**power
    length = np.linalg.norm(turned, axis=-1, keepdims=True)
    scale = np.linalg.norm(y, axis=-1, keepdims=True) / np.where(length > 0, length, 1)
    return scale * turned


def explicit(q, k, v, power):
    """By the N x N weights."""
    weights = np.einsum("bqhd,bkhd->bhqk", focused(q, power), focused(k, power))
    sums = weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights / (sums + 1e-8), v)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_equals_the_explicit_form(power):
    q, k, v = qkv()
    mixed = jax.jit(LinearAttention(power))(q, k, v, GRID)
    np.testing.assert_allclose(mixed, explicit(q, k, v, power), rtol=1e-5, atol=1e-5)


def test_a_power_turns_a_vector_and_keeps_its_length():
    x = qkv()[0]
    for power in (1.0, 3.0, 8.0):
        found = focus(x, power)
        np.testing.assert_allclose(found, focused(x, power), rtol=1e-5, atol=1e-6)
        lengths = [np.linalg.norm(np.maximum(a, 0), axis=-1) for a in (found, x)]
        np.testing.assert_allclose(*lengths, rtol=1e-5)
    np.testing.assert_allclose(focus(x, 1.0), np.maximum(x, 0), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_powers_neither_overflow_nor_vanish(scale):
    x = qkv()[0]
    np.testing.assert_allclose(focus(scale * x, 3.0) / scale, focus(x, 3.0), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_focus_is_its_formulas():
    x = qkv()[0][0, :3, 0].at[1].set(-1.0)  # One vector has no positive entry.
    dx = jax.grad(lambda x: jnp.sin(focus(x, 3.0)).sum())(x)
    loss = lambda x: np.sin(focused(x, 3.0)).sum()  # noqa: E731
    steps = 1e-6 * np.eye(x.size).reshape(-1, *x.shape)
    x = np.asarray(x, np.float64)
    wanted = [(loss(x + step) - loss(x - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(dx.reshape(-1), wanted, rtol=1e-4, atol=1e-5)


def test_the_order_of_tokens_does_not_matter():
    q, k, v = qkv()
    order = np.random.default_rng(1).permutation(15)
    mixed = LinearAttention()(q, k[:, order], v[:, order], GRID)
    np.testing.assert_allclose(mixed, LinearAttention()(q, k, v, GRID), rtol=1e-5, atol=1e-6)


def test_bfloat16_in_and_out():
    q, k, v = qkv(dtype=jnp.bfloat16)
    mixed = LinearAttention(3.0)(q, k, v, GRID)
    assert mixed.dtype == jnp.bfloat16
    wanted = explicit(*(np.asarray(x, np.float64) for x in (q, k, v)), 3.0)
    np.testing.assert_allclose(np.asarray(mixed, np.float32), wanted, atol=0.05)


def test_work_is_linear_in_the_tokens():
    shapes = [[jax.ShapeDtypeStruct((1, n * n, 2, 8), jnp.float32)] * 3 for n in (8, 16)]
    small, large = (count_flops(lambda *x: LinearAttention()(*x, GRID), *s) for s in shapes)
    assert large == 4 * small


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_devices_have_their_own_samples_and_heads(mesh):
    q, k, v = qkv(batch=8)
    here = Layout(Parallel(**mesh).mesh())

    def run(*arrays):
        with use_layout(here):
            return LinearAttention()(*arrays, GRID)

    compiled = jax.jit(run).lower(q, k, v).compile()
    np.testing.assert_allclose(compiled(q, k, v), LinearAttention()(q, k, v, GRID), atol=1e-6)
    assert "all-" not in compiled.as_text()
