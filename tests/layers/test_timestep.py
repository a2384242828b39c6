import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.layers.timestep import Sinusoid, TimestepEmbedder


@pytest.mark.parametrize("dim", [2, 8, 256])
def test_features_equal_the_formula(dim):
    """Cosines, then sines, of t times 10000^(-i / half)."""
    t = np.array([0.0, 1e-3, 0.37, 1.0, 500.0, 999.0])
    expected = []
    for time in t:
        angles = [time * 10000 ** (-i / (dim // 2)) for i in range(dim // 2)]
        expected.append([np.cos(a) for a in angles] + [np.sin(a) for a in angles])
    features = Sinusoid(dim)(jnp.asarray(t, jnp.float32))
    assert features.dtype == jnp.float32
    # A float32 angle of 999 is known to 999 * 6e-8 = 6e-5, and its frequency as well.
    tolerance = 1e-6 + 2e-7 * t[:, None]
    assert (np.abs(features - np.array(expected)) <= tolerance).all()


def test_features_equal_the_twins():
    torch = pytest.importorskip("torch")
    from tests.torch_twins.dit import timestep_embedding

    t = np.arange(0, 1000, 7, dtype=np.float32)
    expected = timestep_embedding(torch.tensor(t)).numpy()
    error = np.abs(Sinusoid()(jnp.asarray(t)) - expected)
    assert (error <= 1e-6 + 2e-7 * t[:, None]).all()  # As above.


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, jnp.float32])
def test_features_are_float32_whatever_the_time(dtype):
    t = jnp.array([0, 1, 128], dtype)
    features = Sinusoid()(t)
    assert features.dtype == jnp.float32
    np.testing.assert_array_equal(features, Sinusoid()(t.astype(jnp.float32)))


def test_embedder_is_two_layers_with_silu_between():
    model = TimestepEmbedder(16, Sinusoid())
    t = jnp.array([0.0, 3.0, 700.0])
    params = model.init(jax.random.key(0), t)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    x = np.asarray(Sinusoid()(t), np.float64)
    x = x @ params["fc1"]["kernel"] + params["fc1"]["bias"]
    x = x / (1 + np.exp(-x))
    expected = x @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    # Sums of 256 float32 products of order 1.
    np.testing.assert_allclose(model.apply({"params": params}, t), expected, rtol=1e-4, atol=1e-4)
