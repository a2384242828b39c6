import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion.vlb import discretized_log_likelihood, normal_kl


def test_kl_equals_its_integral():
    x = np.linspace(-30, 30, 400_001)
    for m1, v1, m2, v2 in [(0.0, 1.0, 0.5, 2.0), (1.0, 0.3, -1.0, 0.9), (0.2, 0.5, 0.2, 0.5)]:
        log_p = -((x - m1) ** 2) / (2 * v1) - np.log(2 * np.pi * v1) / 2
        log_q = -((x - m2) ** 2) / (2 * v2) - np.log(2 * np.pi * v2) / 2
        expected = (np.exp(log_p) * (log_p - log_q)).sum() * (x[1] - x[0])
        actual = normal_kl(m1, np.log(v1), m2, np.log(v2))
        assert actual == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.9, 0.1), (-1.5, 0.3), (0.1, 0.01)])
def test_the_256_values_share_all_probability(mean, std):
    values = jnp.linspace(-1, 1, 256)
    log_likelihood = discretized_log_likelihood(values, jnp.float32(mean), np.log(std))
    # 256 float32 differences of a distribution function.
    assert np.exp(log_likelihood).sum() == pytest.approx(1, abs=2e-5)


def test_inner_bins_are_the_normals_own():
    """Up to the tanh approximation of the distribution function, good to 3e-4."""
    x, mean, std = np.float64([-0.5, 0.0, 0.3]), 0.1, 0.4
    density = np.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * np.sqrt(2 * np.pi))
    actual = discretized_log_likelihood(jnp.float32(x), mean, np.log(std))
    np.testing.assert_allclose(np.exp(actual), density * 2 / 255, rtol=0.01)


def test_impossible_values_have_a_floor():
    value = discretized_log_likelihood(jnp.float32(1.0), -1.0, np.log(1e-3))
    assert value == pytest.approx(np.log(1e-12))


def test_equals_the_twin():
    pytest.importorskip("torch")
    from tests.torch_twins import gaussian_diffusion as twin

    rng = np.random.default_rng(0)
    x = np.concatenate([[-1.0, -0.9995, 0.9995, 1.0, 0.5], rng.uniform(-1, 1, 95)])
    mean, log_variance = x + 0.1 * rng.normal(size=100), rng.uniform(-6, 0, 100)
    expected = twin.discretised_gaussian_log_likelihood(x, mean, log_variance)
    actual = discretized_log_likelihood(*jnp.float32([x, mean, log_variance / 2]))
    # A probability is a float32 difference of numbers up to 1: its log is off by 6e-8 / p.
    tolerance = 1e-5 + 5e-7 / np.exp(expected)
    assert (np.abs(actual - expected) <= tolerance).all()

    m1, v1, m2, v2 = rng.normal(size=(4, 100))
    kl = normal_kl(*jnp.float32([m1, v1, m2, v2]))
    np.testing.assert_allclose(kl, twin.normal_kl(m1, v1, m2, v2), rtol=1e-4, atol=1e-6)
