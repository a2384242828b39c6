import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import GVP, VP, Dopri5, Euler, Flow, Gaussian, Heun, Linear
from dit_jax.errors import InputError
from tests.diffusion.diffusion_helpers import (
    MEAN,
    STD,
    exact_denoiser,
    jax_model,
    jit,
    marginal,
    relative_error,
    start,
    to_nchw,
    torch_model,
)

PATHS = {"linear": Linear(), "gvp": GVP(), "vp": VP()}
SLOW = pytest.mark.slow


def run(process, solver, denoise, x, condition=None):
    keys = jax.random.split(jax.random.key(0), len(x))
    solve = jit(lambda x, condition: solver(process, denoise, x, condition, keys))
    return solve(x, condition or {})


def exact_solution(process, x):
    """Where the ODE of normal(MEAN, STD) data leads: whitened, a sample stands still."""
    grid = process.grid(1)
    (mean1, std1), (mean0, std0) = (marginal(process, t) for t in grid)
    return mean0 + std0 * (x - mean1) / std1


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("linear", "velocity"),
        ("gvp", "velocity"),
        ("vp", "velocity"),
        ("linear", "noise"),
        ("gvp", "score"),
        ("vp", "noise"),
        ("vp", "score"),
    ],
)
@pytest.mark.parametrize(("solver", "method"), [(Euler(8), "euler"), (Heun(5), "heun")])
def test_equals_the_twin(name, prediction, solver, method):
    """With SiT's clock: one model function, and the same samples."""
    pytest.importorskip("torch")
    from tests.torch_twins.sit_transport import ode_sample

    process, net = Flow(PATHS[name], prediction, data_time=1), jax_model(4)
    x, _ = start()
    actual = run(process, solver, lambda x, t, c: net(x, process.model_time(t)), x)
    expected = ode_sample(
        torch_model(4),
        to_nchw(x),
        path=name,
        prediction=prediction,
        method=method,
        num_points=solver.steps + 1,
    )
    # 8 steps of float32; where 1 / alpha or 1 / sigma reaches 1000, times known to 1e-7 of 1e-3.
    tolerance = 1e-5 if prediction == "velocity" else 1e-3
    assert relative_error(actual, expected) <= tolerance


@pytest.mark.parametrize("solver", [Euler(8), Heun(5), pytest.param(Dopri5(), marks=SLOW)])
def test_the_clock_of_the_model_does_not_change_the_samples(solver):
    x, _ = start()
    net = jax_model(4)
    ours = run(Flow(), solver, lambda x, t, c: -net(x, 1 - t), x)
    process = Flow(data_time=1)
    theirs = run(process, solver, lambda x, t, c: net(x, process.model_time(t)), x)
    # Equal programs but for where a sign and 1 - t are taken.
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "order", "counts"), [(Euler, 1, (20, 40, 80)), (Heun, 2, (10, 20, 40))]
)
@pytest.mark.parametrize("name", ["linear", "gvp"])
def test_order_of_convergence(name, solver, order, counts):
    process = Flow(PATHS[name])
    x, _ = start()
    exact = exact_solution(process, x)
    errors = [
        np.abs(run(process, solver(n), exact_denoiser(process), x) - exact).max() for n in counts
    ]
    # Halving the step divides the error by 2^order, and the next term of the series is a few
    # percent of this one; the smallest error here, 1e-4, is far above float32's.
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, order, atol=0.3)
    assert errors[-1] > 3e-6


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("linear", "velocity"),
        ("linear", "x0"),
        ("linear", "noise"),
        ("linear", "score"),
        ("gvp", "velocity"),
        ("gvp", "noise"),
        ("vp", "velocity"),
        ("vp", "noise"),
        pytest.param("gvp", "x0", marks=SLOW),
        pytest.param("gvp", "score", marks=SLOW),
        pytest.param("vp", "x0", marks=SLOW),
        pytest.param("vp", "score", marks=SLOW),
    ],
)
def test_gaussian_data_comes_out_with_its_mean_and_std(name, prediction):
    process = Flow(PATHS[name], prediction)
    x, _ = start(batch=16, size=(16, 16), channels=1)
    samples = run(process, Heun(100), exact_denoiser(process), x)
    # The start is 4096 draws of normal(0, 1), whose own mean and std are divided out; left are the
    # coarse steps.
    expected_mean, expected_std = MEAN + STD * x.mean(), STD * x.std()
    assert samples.mean() == pytest.approx(float(expected_mean), abs=0.01)
    assert samples.std() == pytest.approx(float(expected_std), rel=0.01)


@pytest.mark.parametrize(
    "name", ["linear", pytest.param("gvp", marks=SLOW), pytest.param("vp", marks=SLOW)]
)
def test_dopri5_is_exact_to_its_tolerance(name):
    process = Flow(PATHS[name])
    x, _ = start()
    exact = exact_solution(process, x)
    loose = np.abs(run(process, Dopri5(), exact_denoiser(process), x) - exact).max()
    tight = np.abs(run(process, Dopri5(rtol=1e-5), exact_denoiser(process), x) - exact).max()
    # The tolerance is of the estimated error of one step. The estimate is low for a long last step
    # of GVP; scipy's RK45, with other steps, errs by 1e-2 at most on these fields.
    assert loose < 0.03
    assert tight < 3e-5


def test_dopri5_steps_each_sample_by_itself():
    """A neighbour with a steeper field would shorten the steps of all, and move the result."""
    x, _ = start(batch=3)

    def denoise(x, t, condition):
        rate = condition["rate"][:, None, None, None]
        return jnp.sin(rate * x + 5 * t)

    keys = jax.random.split(jax.random.key(0), 3)
    solve = jit(lambda rate: Dopri5()(Flow(), denoise, x, {"rate": rate}, keys))
    together = solve(jnp.array([1.0, 2.0, 40.0]))
    calm = solve(jnp.array([1.0, 1.5, 1.0]))
    # Steps of other lengths change a result by the tolerance, 1e-4 to 1e-3; these are the same.
    np.testing.assert_allclose(together[:1], calm[:1], atol=2e-6)


def test_dopri5_reports_a_sample_that_does_not_arrive():
    x, _ = start(batch=1)
    with pytest.raises(Exception, match="maximum number of solver steps"):
        run(Flow(), Dopri5(max_steps=2), exact_denoiser(Flow()), x).block_until_ready()


@pytest.mark.parametrize("solver", [Euler(30), Heun(10)])
def test_a_shift_changes_the_grid_and_not_the_destination(solver):
    x, _ = start()
    process = Flow(shift=3.0)
    samples = run(process, solver, exact_denoiser(process), x)
    plain = run(Flow(), solver, exact_denoiser(Flow()), x)
    exact = exact_solution(Flow(), x)
    # The first order's error is 10 % of the largest sample, 3.
    assert np.abs(samples - exact).max() < 0.3
    assert np.abs(samples - plain).max() > 1e-4


@pytest.mark.parametrize("solver", [Euler(), Heun(), Dopri5()])
def test_a_gaussian_process_is_not_solved(solver):
    x, keys = start()
    with pytest.raises(InputError, match=f"{type(solver).__name__}.*Flow.*Gaussian"):
        solver(Gaussian(), lambda x, t, c: x, x, {}, keys)
