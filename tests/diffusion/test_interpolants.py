import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.diffusion import GVP, VP, Linear
from dit_jax.diffusion.conversions import estimate

PATHS = {"linear": Linear(), "gvp": GVP(), "vp": VP()}
KINDS = ("velocity", "x0", "noise", "score")
TIMES = np.linspace(0.02, 0.98, 25).astype(np.float32)

few = settings(deadline=None, derandomize=True, max_examples=20)
names = st.sampled_from(sorted(PATHS))


@pytest.mark.parametrize(("name", "end"), [("linear", 0.0), ("gvp", 0.0), ("vp", 6.6e-3)])
def test_ends_are_data_and_noise(name, end):
    start, stop = PATHS[name](jnp.float32(0)), PATHS[name](jnp.float32(1))
    assert (start.alpha, start.sigma) == (1, 0)
    # VP keeps exp(-20.1 / 4) of the data at t = 1.
    assert stop.alpha == pytest.approx(end, rel=0.01, abs=1e-7)
    assert stop.sigma == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["gvp", "vp"])
def test_variance_is_preserved(name):
    c = PATHS[name](TIMES)
    np.testing.assert_allclose(c.alpha**2 + c.sigma**2, 1, rtol=1e-6)


def test_linear_is_a_straight_line():
    c = Linear()(TIMES)
    np.testing.assert_allclose(c.alpha + c.sigma, 1, rtol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_derivatives_are_those_of_the_coefficients(name):
    c = PATHS[name](TIMES)
    for value, derivative in [("alpha", c.d_alpha), ("sigma", c.d_sigma)]:
        gradient = jax.vmap(jax.grad(lambda t, v=value: getattr(PATHS[name](t), v)))(TIMES)
        # Two float32 expressions of one function.
        np.testing.assert_allclose(derivative, gradient, rtol=1e-4, atol=1e-6)


def test_vp_has_the_beta_of_its_sde():
    """d log alpha / dt = -beta / 2 with beta linear from 0.1 to 20."""
    c = VP()(TIMES)
    np.testing.assert_allclose(-2 * c.d_alpha / c.alpha, 0.1 + 19.9 * TIMES, rtol=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_drift_diffusion_is_its_definition(name):
    c = PATHS[name](TIMES)
    expected = c.sigma * c.d_sigma - c.d_alpha / c.alpha * c.sigma**2
    # VP's closed form beta / 2 avoids a difference of terms that cancel.
    np.testing.assert_allclose(PATHS[name].drift_diffusion(TIMES), expected, rtol=1e-3)


@pytest.mark.parametrize("name", PATHS)
def test_coefficients_equal_the_twins(name):
    pytest.importorskip("torch")
    from tests.torch_twins.sit_transport import get_path

    path, c = get_path(name), PATHS[name](TIMES)
    sit = 1 - np.float64(TIMES)  # SiT's clock: its derivatives have the other sign.
    for actual, expected in [
        (c.alpha, path.alpha(sit)),
        (c.sigma, path.sigma(sit)),
        (-c.d_alpha, path.d_alpha(sit)),
        (-c.d_sigma, path.d_sigma(sit)),
        (PATHS[name].drift_diffusion(TIMES), path.drift_pair(np.ones((25, 1)), sit)[1][:, 0]),
    ]:
        # float32 against float64; VP's sigma near data is the root of a small difference.
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def sample(name, t, seed):
    rng = np.random.default_rng(seed)
    x0, noise = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    c = PATHS[name](jnp.float32(t))
    truth = {
        "x0": x0,
        "noise": noise,
        "velocity": c.d_alpha * x0 + c.d_sigma * noise,
        "score": -noise / c.sigma,
    }
    return c, c.alpha * x0 + c.sigma * noise, truth


@few
@given(names, st.floats(0.1, 0.9), st.sampled_from(KINDS), st.integers(0, 9))
def test_every_kind_converts_to_the_truth(name, t, kind, seed):
    c, x, truth = sample(name, t, seed)
    result = estimate(kind, truth[kind], x, c)
    for other in KINDS:
        # x0 from noise divides by alpha, down to 0.02 for VP: 50 times float32's rounding.
        scale = max(1.0, np.abs(truth[other]).max())
        error = np.abs(getattr(result, other) - truth[other]).max()
        assert error <= 1e-4 * scale, (other, error)


@few
@given(
    names, st.floats(0.1, 0.8), st.sampled_from(KINDS), st.sampled_from(KINDS), st.integers(0, 9)
)
def test_conversions_round_trip(name, t, kind, other, seed):
    """Also for predictions that are no truth of any sample."""
    c, x, _ = sample(name, t, seed)
    value = np.random.default_rng(seed + 100).normal(size=x.shape).astype(np.float32)
    there = getattr(estimate(kind, value, x, c), other)
    back = getattr(estimate(other, there, x, c), kind)
    # Errors of the intermediate are amplified by at most the ratio of the units (VP: 1 / alpha).
    assert np.abs(back - value).max() <= 1e-3


@pytest.mark.parametrize("name", PATHS)
def test_conversions_equal_the_twins(name):
    pytest.importorskip("torch")
    from tests.torch_twins import sit_transport as sit

    t = np.float32([0.1, 0.3, 0.6, 0.9])
    rng = np.random.default_rng(0)
    x, value = rng.normal(size=(2, 4, 2, 3, 4))
    c = PATHS[name](jnp.asarray(t)[:, None, None, None])
    clock = 1 - np.float64(t)
    velocity = estimate("velocity", jnp.float32(-value), jnp.float32(x), c)
    noise = estimate("noise", jnp.float32(value), jnp.float32(x), c)
    score = estimate("score", jnp.float32(value), jnp.float32(x), c)
    for actual, expected in [
        (velocity.score, sit.score_from_velocity(name, value, x, clock)),
        (velocity.noise, sit.noise_from_velocity(name, value, x, clock)),
        (noise.score, sit.score_from_noise(name, value, clock)),
        (-noise.velocity, sit.velocity_from_noise(name, value, x, clock)),
        (-score.velocity, sit.velocity_from_score(name, value, x, clock)),
    ]:
        # As in the round trips: VP's velocity is a difference of terms of order 1 / alpha.
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_conversions_are_finite_at_the_ends(kind, t):
    x = jnp.ones((1, 2, 2, 1))
    result = estimate(kind, 0.5 * x, x, Linear()(jnp.float32(t)))
    assert all(np.isfinite(leaf).all() for leaf in result)


def test_without_derivatives_there_is_no_velocity():
    c = Linear()(jnp.float32(0.5))
    assert estimate("noise", jnp.ones(1), jnp.ones(1), c._replace(d_alpha=None)).velocity is None
