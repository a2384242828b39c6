import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import GVP, VP, Flow, Linear
from tests.diffusion.diffusion_helpers import marginal, relative_error, to_nchw

PATHS = {"linear": Linear(), "gvp": GVP(), "vp": VP()}
PREDICTIONS = ("velocity", "x0", "noise", "score")
TIMES = jnp.array([0.05, 0.3, 0.62, 0.97], jnp.float32)


def arrays(seed=0):
    return np.random.default_rng(seed).normal(size=(3, 4, 2, 3, 4)).astype(np.float32)


def truth(process, x0, noise, t):
    """What a perfect model would say of this one sample."""
    c = process.coefficients(t[:, None, None, None])
    sign = -1 if process.data_time == 1 else 1
    return {
        "velocity": sign * (c.d_alpha * x0 + c.d_sigma * noise),
        "x0": x0,
        "noise": noise,
        "score": -noise / c.sigma,
    }[process.prediction]


@pytest.mark.parametrize("name", PATHS)
def test_corrupt_equals_the_twin(name):
    pytest.importorskip("torch")
    from tests.torch_twins.sit_transport import interpolate

    x0, noise, _ = arrays()
    expected, _ = interpolate(name, to_nchw(noise), to_nchw(x0), 1 - np.float64(TIMES))
    # One float32 sum, of coefficients good to 1e-6 (VP).
    assert relative_error(Flow(PATHS[name]).corrupt(x0, noise, TIMES), expected) <= 2e-6


@pytest.mark.parametrize("weight", ["uniform", "velocity", "likelihood"])
@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
@pytest.mark.parametrize("name", PATHS)
def test_loss_equals_the_twin(name, prediction, weight):
    pytest.importorskip("torch")
    from tests.torch_twins import sit_transport as sit

    x0, noise, output = arrays()
    process = Flow(PATHS[name], prediction, weight, data_time=1)
    expected = sit.loss(
        name,
        prediction,
        to_nchw(output),
        to_nchw(noise),
        to_nchw(x0),
        1 - np.float64(TIMES),
        None if weight == "uniform" else weight,
    )
    loss, _ = process.loss(output, x0, noise, TIMES)
    assert loss.shape == (4,) and loss.dtype == jnp.float32
    # Means of 24 squares; 1 - t in float32 loses digits near noise (linear's weight at 0.97).
    np.testing.assert_allclose(loss, expected, rtol=2e-5)


@pytest.mark.parametrize("data_time", [0, 1])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", PATHS)
def test_a_perfect_model_has_no_loss_and_perfect_estimates(name, prediction, data_time):
    x0, noise, other = arrays()
    process = Flow(PATHS[name], prediction, data_time=data_time)
    perfect = truth(process, x0, noise, TIMES)
    # The squares of roundings, at the scale of VP's velocity, about 10.
    np.testing.assert_allclose(process.loss(perfect, x0, noise, TIMES)[0], 0, atol=1e-9)
    assert process.loss(perfect + other, x0, noise, TIMES)[0].min() > 1e-3

    x = process.corrupt(x0, noise, TIMES)
    estimate = process.estimate(x, TIMES, perfect)
    c = process.coefficients(TIMES[:, None, None, None])
    # Divided by alpha or sigma, 0.009 at the least (VP at 0.97): 1e-7 becomes 1e-5, and more.
    np.testing.assert_allclose(estimate.x0, x0, atol=2e-4)
    np.testing.assert_allclose(estimate.noise, noise, atol=2e-4)
    velocity = c.d_alpha * x0 + c.d_sigma * noise
    np.testing.assert_allclose(estimate.velocity, velocity, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_second_half_of_channels_is_not_used(prediction):
    x0, noise, output = arrays()
    process = Flow(prediction=prediction)
    wide = np.concatenate([output, 100 + output], axis=-1)
    np.testing.assert_array_equal(
        process.loss(wide, x0, noise, TIMES)[0], process.loss(output, x0, noise, TIMES)[0]
    )
    narrow, broad = (process.estimate(x0, TIMES, o) for o in (output, wide))
    np.testing.assert_array_equal(narrow.velocity, broad.velocity)


def test_x0_loss_is_the_squared_error():
    x0, noise, output = arrays()
    loss, _ = Flow(prediction="x0", loss_weight="likelihood").loss(output, x0, noise, TIMES)
    np.testing.assert_allclose(loss, np.square(output - x0).mean(axis=(1, 2, 3)), rtol=1e-5)


def test_the_models_clock_is_met_here():
    np.testing.assert_array_equal(Flow().model_time(TIMES), TIMES)
    np.testing.assert_array_equal(Flow(data_time=1).model_time(TIMES), 1 - TIMES)
    x0, noise, output = arrays()
    ours = Flow().estimate(x0, TIMES, output)
    theirs = Flow(data_time=1).estimate(x0, TIMES, -output)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    np.testing.assert_array_equal(
        Flow().loss(output, x0, noise, TIMES)[0],
        Flow(data_time=1).loss(-output, x0, noise, TIMES)[0],
    )


@pytest.mark.parametrize("prediction", ["x0", "noise", "score"])
def test_only_a_velocity_has_a_clocks_sign(prediction):
    x0, _, output = arrays()
    ours, theirs = (Flow(prediction=prediction, data_time=d) for d in (0, 1))
    jax.tree.map(
        np.testing.assert_array_equal,
        ours.estimate(x0, TIMES, output),
        theirs.estimate(x0, TIMES, output),
    )


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
def test_intervals_equal_the_twins(name, prediction):
    pytest.importorskip("torch")
    from tests.torch_twins import sit_transport as sit

    process = Flow(PATHS[name], prediction)
    low, high = process.interval(training=True)
    start, stop = sit.train_interval(name, prediction)
    assert (low, high) == pytest.approx((1 - stop, 1 - start), abs=1e-12)
    grid = np.asarray(process.grid(7))
    expected = np.linspace(*sit.ode_interval(name, prediction), 8)
    np.testing.assert_allclose(1 - grid, expected, atol=2e-7)  # float32 times up to 1.


def test_the_sampling_grid_is_shifted_and_stops_where_told():
    assert np.asarray(Flow().grid(4)).tolist() == [1, 0.75, 0.5, 0.25, 0]
    np.testing.assert_allclose(Flow(shift=3.0).grid(2), [1, 0.75, 0], atol=1e-7)
    np.testing.assert_allclose(Flow().grid(2, stop=0.5), [1, 0.75, 0.5], atol=1e-7)
    assert Flow(VP()).grid(2)[-1] == pytest.approx(1e-3)


def test_the_loss_is_least_at_the_posterior_mean():
    """Over many samples at one t, no constant beats the exact conditional velocity at x near 0."""
    rng = np.random.default_rng(0)
    process, count = Flow(), 200_000
    x0 = np.float32(0.3 + 0.5 * rng.normal(size=(count, 1, 1, 1)))
    noise = rng.normal(size=x0.shape).astype(np.float32)
    t = jnp.full(count, 0.4)
    x = np.asarray(process.corrupt(x0, noise, t))
    mean, std = marginal(process, jnp.float32(0.4))
    x0_hat = 0.3 + 0.6 * 0.25 * (x - mean) / std**2
    noise_hat = 0.4 * (x - mean) / std**2
    exact = noise_hat - x0_hat
    loss = lambda output: process.loss(output, x0, noise, t)[0].mean()  # noqa: E731
    # A constant offset c adds c^2 exactly, up to the cross term: 2 c error / sqrt(count) = 4e-4.
    for offset in (-0.1, 0.1):
        assert loss(exact + offset) - loss(exact) == pytest.approx(0.01, abs=1.5e-3)
