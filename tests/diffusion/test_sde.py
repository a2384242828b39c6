import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import GVP, VP, EulerMaruyama, Flow, Gaussian, HeunSDE, Linear
from dit_jax.errors import InputError
from tests.diffusion.diffusion_helpers import (
    MEAN,
    STD,
    exact_denoiser,
    jax_model,
    jit,
    relative_error,
    start,
    step_noises,
    to_nchw,
    torch_model,
)

PATHS = {"linear": Linear(), "gvp": GVP(), "vp": VP()}
STEPS = 8
SLOW = pytest.mark.slow


def run(process, solver, denoise, x, keys):
    return jit(lambda x, keys: solver(process, denoise, x, {}, keys))(x, keys)


def sit_samples(process, solver, x, keys):
    net = jax_model(4)
    return run(process, solver, lambda x, t, c: net(x, process.model_time(t)), x, keys)


def twin_samples(name, prediction, solver, x, keys, **kwargs):
    from tests.torch_twins.sit_transport import sde_sample

    return sde_sample(
        torch_model(4),
        to_nchw(x),
        list(step_noises(keys, x, solver.steps - 1)),
        path=name,
        prediction=prediction,
        form={"sbdm": "SBDM"}.get(solver.diffusion, solver.diffusion),
        norm=solver.norm,
        method="heun" if isinstance(solver, HeunSDE) else "euler",
        num_steps=solver.steps,
        last=None if solver.last_step == "none" else solver.last_step,
        last_step_size=solver.last_step_size,
        **kwargs,
    )


# Each form with each solver, and over these all paths, predictions and last steps.
CASES = [
    ("linear", "velocity", "sigma", "mean", 1.0),
    ("linear", "velocity", "linear", "euler", 0.7),
    ("linear", "velocity", "constant", "tweedie", 1.0),
    ("linear", "velocity", "decreasing", "mean", 0.5),
    ("linear", "noise", "sbdm", "mean", 1.0),
    ("linear", "score", "sin", "none", 1.0),
    ("gvp", "velocity", "sin", "euler", 1.3),
    ("gvp", "score", "sbdm", "tweedie", 0.5),
    ("gvp", "noise", "decreasing", "mean", 1.0),
    ("vp", "velocity", "sbdm", "mean", 1.0),
    ("vp", "noise", "linear", "tweedie", 1.0),
    ("vp", "score", "constant", "mean", 1.0),
]


@pytest.mark.parametrize(("name", "prediction", "form", "last", "norm"), CASES)
@pytest.mark.parametrize("kind", [EulerMaruyama, HeunSDE])
def test_equals_the_twin(kind, name, prediction, form, last, norm):
    """With SiT's clock: one model function, the same noise, and the same samples."""
    pytest.importorskip("torch")
    solver = kind(STEPS, form, norm, last)
    process = Flow(PATHS[name], prediction, data_time=1)
    x, keys = start()
    actual = sit_samples(process, solver, x, keys)
    expected = twin_samples(name, prediction, solver, x, keys)
    # A few float32 roundings a step; where 1 / alpha or 1 / sigma reaches 1000 (other predictions
    # than velocity, VP), times are known to 1e-7 of 1e-3.
    tolerance = 2e-5 if prediction == "velocity" and name != "vp" else 1e-3
    assert relative_error(actual, expected) <= tolerance


@pytest.mark.parametrize("name", ["linear", "gvp"])
def test_sbdm_starts_just_short_of_noise_where_its_diffusion_is_infinite(name):
    """SiT's own grid would start with 1 / 0 here; ours moves that one point to 0.999."""
    pytest.importorskip("torch")
    from tests.torch_twins import sit_transport as sit

    solver = EulerMaruyama(STEPS, "sbdm")
    process = Flow(PATHS[name], data_time=1)
    x, keys = start()
    actual = sit_samples(process, solver, x, keys)
    grid = np.linspace(0, 0.96, STEPS)
    grid[0] = 1e-3
    y, how = to_nchw(x), {"path": name, "form": "SBDM"}
    for t, after, noise in zip(grid[:-1], grid[1:], step_noises(keys, x, STEPS - 1), strict=True):
        y = sit.sde_step(torch_model(4), y, t, after - t, noise, **how)
    expected = sit.last_step(torch_model(4), y, 0.96, **how)
    # 1 - t in float32 is good to 6e-8 of 1e-3.
    assert relative_error(actual, expected) <= 1e-3


@pytest.mark.parametrize("size", [0.01, 0.1])
def test_the_last_step_has_its_size(size):
    pytest.importorskip("torch")
    solver = EulerMaruyama(STEPS, last_step_size=size)
    x, keys = start()
    actual = sit_samples(Flow(data_time=1), solver, x, keys)
    assert relative_error(actual, twin_samples("linear", "velocity", solver, x, keys)) <= 2e-5


@pytest.mark.parametrize("solver", [EulerMaruyama(STEPS), HeunSDE(STEPS)])
def test_the_clock_of_the_model_does_not_change_the_samples(solver):
    x, keys = start()
    net = jax_model(4)
    ours = run(Flow(), solver, lambda x, t, c: -net(x, 1 - t), x, keys)
    theirs = sit_samples(Flow(data_time=1), solver, x, keys)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "prediction", "solver"),
    [
        ("linear", "velocity", EulerMaruyama(250)),
        ("linear", "velocity", HeunSDE(100)),
        ("linear", "velocity", EulerMaruyama(250, "sbdm")),
        pytest.param(
            "linear", "velocity", EulerMaruyama(250, "constant", last_step="tweedie"), marks=SLOW
        ),
        pytest.param("linear", "velocity", HeunSDE(100, "linear", last_step="euler"), marks=SLOW),
        pytest.param("linear", "velocity", EulerMaruyama(250, "decreasing"), marks=SLOW),
        ("linear", "velocity", EulerMaruyama(250, "sin", last_step="none")),
        ("linear", "noise", EulerMaruyama(250)),
        pytest.param("linear", "x0", EulerMaruyama(250), marks=SLOW),
        pytest.param("linear", "score", HeunSDE(100), marks=SLOW),
        ("gvp", "velocity", EulerMaruyama(250)),
        pytest.param("gvp", "score", HeunSDE(100), marks=SLOW),
        pytest.param("vp", "velocity", EulerMaruyama(400, last_step_size=0.01), marks=SLOW),
        ("vp", "noise", HeunSDE(250, "sbdm", last_step_size=0.01)),
        pytest.param("vp", "x0", EulerMaruyama(400, last_step_size=0.01), marks=SLOW),
    ],
)
def test_gaussian_data_comes_out_with_its_mean_and_std(name, prediction, solver):
    """Every diffusion keeps the marginals: so the noise added and the score taken must balance."""
    process = Flow(PATHS[name], prediction)
    x, keys = start(batch=64, size=(16, 16), channels=1)
    samples = run(process, solver, exact_denoiser(process), x, keys)
    # 16384 draws: the mean varies by 0.004 and the std by 0.6 %. The last step is noiseless, which
    # costs the std up to 1 % (more for VP, whose sigma rises fast), as do the coarse steps.
    assert samples.mean() == pytest.approx(MEAN, abs=0.02)
    assert samples.std() == pytest.approx(STD, rel=0.04)


def test_the_last_step_none_stops_at_data():
    x, keys = start()
    process = Flow()
    solver = EulerMaruyama(STEPS, "linear", last_step="none")
    samples = run(process, solver, exact_denoiser(process), x, keys)
    assert np.isfinite(samples).all()


def test_norm_0_is_the_ode():
    from dit_jax.diffusion import Euler

    x, keys = start()
    process = Flow()
    solver = EulerMaruyama(11, "sigma", norm=0.0, last_step="none")
    samples = run(process, solver, exact_denoiser(process), x, keys)
    expected = run(process, Euler(10), exact_denoiser(process), x, keys)
    np.testing.assert_allclose(samples, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", [EulerMaruyama(STEPS), HeunSDE(STEPS)])
def test_steps_is_the_number_of_times_the_model_is_called_at(solver):
    process, seen = Flow(), []

    def denoise(x, t, condition):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return x

    x, keys = start()
    run(process, solver, denoise, x, keys).block_until_ready()
    jax.effects_barrier()
    expected = np.linspace(1, 0.04, STEPS)
    np.testing.assert_allclose(np.unique(np.float32(seen).round(5)), expected[::-1], atol=2e-5)


@pytest.mark.parametrize("solver", [EulerMaruyama(), HeunSDE()])
def test_a_gaussian_process_is_not_solved(solver):
    x, keys = start()
    with pytest.raises(InputError, match=f"{type(solver).__name__}.*Flow.*Gaussian"):
        solver(Gaussian(), lambda x, t, c: jnp.zeros_like(x), x, {}, keys)
