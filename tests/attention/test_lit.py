import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.attention import LiT
from dit_jax.kernels.linear_attention import reference


def qkv(tokens, batch=2, heads=2, width=3):
    rng = np.random.default_rng(0)
    shape = batch, tokens, heads, width
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3)]


def random_params(model, *args):
    rng = np.random.default_rng(1)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *args))["params"]
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)


def linear(q, k, v):
    return reference.attention(q, k, v, offset=1e-6, eps=1e-6 * q.shape[1])


def convolved(v, grid, kernel):
    """By loops over tokens and over the window; every head and frame alike."""
    frames, (rows, columns), reach = int(np.prod(grid[:-2])), grid[-2:], len(kernel) // 2
    v = np.asarray(v).reshape(len(v), frames, rows, columns, *v.shape[2:])
    out = np.zeros_like(v)
    for row, column, i, j in np.ndindex(rows, columns, *kernel.shape[:2]):
        y, x = row + i - reach, column + j - reach
        if 0 <= y < rows and 0 <= x < columns:
            out[:, :, row, column] += v[:, :, y, x] * kernel[i, j, 0]
    return out.reshape(len(v), -1, *v.shape[4:])


@pytest.mark.parametrize(("grid", "kernel"), [((4, 7), 5), ((2, 3, 4), 3), ((1, 1), 5)])
def test_adds_a_convolution_of_the_values(grid, kernel):
    args = *qkv(int(np.prod(grid))), grid
    params = random_params(LiT(kernel), *args)
    mixed = LiT(kernel).apply({"params": params}, *args)
    wanted = linear(*args[:3]) + convolved(args[2], grid, params["conv_kernel"])
    np.testing.assert_allclose(mixed, wanted, rtol=1e-5, atol=1e-5)


def test_starts_as_linear_attention_and_the_convolution_moves_at_once():
    args = *qkv(12), (3, 4)
    params = LiT().init(jax.random.key(0), *args)["params"]
    assert params["conv_kernel"].shape == (5, 5, 1, 3)  # A head's width: heads share it.
    mixed = LiT().apply({"params": params}, *args)
    np.testing.assert_allclose(mixed, linear(*args[:3]), rtol=1e-5, atol=1e-6)
    loss = lambda params: jnp.sin(LiT().apply({"params": params}, *args)).sum()  # noqa: E731
    gradient = jax.grad(loss)(params)
    assert np.abs(gradient["conv_kernel"]).max() > 0


def test_bfloat16_in_and_out():
    args = *(x.astype(jnp.bfloat16) for x in qkv(12)), (3, 4)
    params = random_params(LiT(), *args)
    mixed = LiT().apply({"params": params}, *args)
    assert mixed.dtype == jnp.bfloat16
    wide = LiT().apply({"params": params}, *(x.astype(jnp.float32) for x in args[:3]), (3, 4))
    np.testing.assert_allclose(np.asarray(mixed, np.float32), wide, atol=0.1)
