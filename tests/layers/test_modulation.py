import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.layers.modulation import AdaLN, modulate
from dit_jax.layers.norm import layer_norm


def test_layer_norm_equals_a_loop_over_tokens():
    x = 5 + 3 * np.random.default_rng(0).normal(size=(2, 3, 16))
    expected = np.empty_like(x)
    for index in np.ndindex(2, 3):
        token = x[index]
        variance = np.mean((token - token.mean()) ** 2)  # Biased, as PyTorch's.
        expected[index] = (token - token.mean()) / np.sqrt(variance + 1e-6)
    # float32 against float64.
    np.testing.assert_allclose(layer_norm(x.astype(np.float32)), expected, rtol=1e-5, atol=1e-5)


def test_layer_norm_survives_tokens_that_are_small_or_constant():
    x = np.float32([[1e-4, -1e-4], [7.0, 7.0]])
    variance = 1e-8
    expected = [[1e-4 / np.sqrt(variance + 1e-6), -1e-4 / np.sqrt(variance + 1e-6)], [0, 0]]
    np.testing.assert_allclose(layer_norm(x), expected, rtol=1e-5)


def test_layer_norm_of_bfloat16_takes_float32_statistics():
    # In bfloat16 the mean of numbers near 256 is good to 1; the spread here is 4.
    x = jnp.asarray(256 + 2 * np.random.default_rng(0).integers(-2, 3, (4, 64)), jnp.bfloat16)
    normed = layer_norm(x)
    assert normed.dtype == jnp.bfloat16
    exact = layer_norm(x.astype(jnp.float32))
    np.testing.assert_allclose(normed.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_modulate_shifts_and_scales_each_sample():
    rng = np.random.default_rng(0)
    x, shift, scale = (rng.normal(size=(2, n, 4)) for n in (3, 1, 1))
    y = modulate(x, shift, scale)
    for b, n, d in np.ndindex(2, 3, 4):
        assert np.isclose(y[b, n, d], x[b, n, d] * (1 + scale[b, 0, d]) + shift[b, 0, d])


def test_adaln_is_silu_then_linear_split_in_order():
    c = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    model = AdaLN(3)
    params = model.init(jax.random.key(0), c)["params"]
    assert all((vector == 0).all() for vector in model.apply({"params": params}, c))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    whole = c / (1 + np.exp(-c)) @ params["linear"]["kernel"] + params["linear"]["bias"]
    for i, vector in enumerate(model.apply({"params": params}, c)):
        np.testing.assert_allclose(vector[:, 0], whole[:, 4 * i : 4 * i + 4], rtol=1e-5, atol=1e-5)


def test_adaln_takes_a_condition_a_token():
    c = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    model = AdaLN(2, activate=False, initial="xavier")
    params = model.init(jax.random.key(0), c)["params"]
    vectors = model.apply({"params": params}, c)
    for n in range(3):
        for vector, alone in zip(vectors, model.apply({"params": params}, c[:, n])):
            np.testing.assert_allclose(vector[:, n], alone[:, 0], rtol=1e-5, atol=1e-6)
