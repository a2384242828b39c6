import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.layers.norm import RMSNorm


def test_rms_norm_equals_the_formula():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    params = {"scale": np.linspace(0.5, 2, 8, dtype=np.float32)}
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["scale"]
    np.testing.assert_allclose(RMSNorm().apply({"params": params}, x), expected, rtol=1e-5)


def test_rms_norm_begins_as_a_plain_division():
    x = jnp.full((1, 4), 3.0)
    params = RMSNorm().init(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(RMSNorm().apply({"params": params}, x), np.ones((1, 4)), rtol=1e-6)


def test_rms_norm_of_bfloat16_takes_float32_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 512)), jnp.bfloat16)
    params = {"scale": np.ones(512, np.float32)}
    y = RMSNorm().apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    exact = RMSNorm().apply({"params": params}, x.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8)
