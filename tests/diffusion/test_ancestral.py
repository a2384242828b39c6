import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import DDIM, DDPM, Flow, Gaussian
from dit_jax.diffusion.respacing import respace
from dit_jax.errors import InputError
from tests.diffusion.diffusion_helpers import (
    MEAN,
    STD,
    jax_model,
    jit,
    relative_error,
    start,
    step_noises,
    to_nchw,
    torch_model,
)


def run(process, solver, denoise, x, keys, condition=None):
    return jit(lambda x, keys: solver(process, denoise, x, condition or {}, keys))(x, keys)


def denoiser(process, channels=4):
    """The shared model, called as a network is: with the model's own time, here made small."""
    model = jax_model(channels, process.output_channels(channels) // channels)
    return lambda x, t, condition: model(x, process.model_time(t) / 1000)


@pytest.fixture(scope="module")
def twin():
    pytest.importorskip("torch")
    from tests.torch_twins.gaussian_diffusion import GaussianDiffusion

    return GaussianDiffusion


# A model that is no denoiser takes samples far out; float32 errors stay relative to the largest.
TOLERANCE = 1e-4


@pytest.mark.parametrize("spec", ["10", "ddim20", "3,4,5", "1000"])
def test_ddpm_equals_the_twin(spec, twin):
    process, reference = Gaussian(), twin(spec)
    x, keys = start()
    actual = run(process, DDPM(steps=spec), denoiser(process), x, keys)
    noises = step_noises(keys, x, reference.num_steps)
    expected = reference.p_sample_loop(torch_model(4, 2, 1e-3), to_nchw(x), noises)
    assert relative_error(actual, expected) <= TOLERANCE


@pytest.mark.parametrize(("spec", "eta"), [("10", 0.0), ("ddim20", 0.5), ("50", 1.0)])
def test_ddim_equals_the_twin(spec, eta, twin):
    process, reference = Gaussian(), twin(spec)
    x, keys = start()
    actual = run(process, DDIM(steps=spec, eta=eta), denoiser(process), x, keys)
    noises = step_noises(keys, x, reference.num_steps)
    expected = reference.ddim_sample_loop(torch_model(4, 2, 1e-3), to_nchw(x), eta, noises)
    assert relative_error(actual, expected) <= TOLERANCE


def test_the_model_is_told_the_original_indices():
    process, seen = Gaussian(), []

    def denoise(x, t, condition):
        jax.debug.callback(lambda index: seen.append(float(index)), process.model_time(t))
        return jnp.concatenate([x, x], axis=-1)

    x, keys = start()
    run(process, DDPM(steps=7), denoise, x, keys).block_until_ready()
    jax.effects_barrier()
    assert sorted(seen, reverse=True) == list(respace(1000, 7)[::-1])


def exact_noise(process):
    """The best prediction of the noise for normal(MEAN, STD) data, and no variance."""

    def denoise(x, t, condition):
        c = process.coefficients(t)
        return c.sigma * (x - c.alpha * MEAN) / ((c.alpha * STD) ** 2 + c.sigma**2)

    return denoise


@pytest.mark.parametrize(
    ("solver", "variance"),
    [
        (DDPM(steps=250), "fixed_small"),
        (DDPM(steps=250), "fixed_large"),
        (DDIM(steps=100), "fixed_small"),
        (DDIM(steps=250, eta=1.0), "fixed_small"),
    ],
)
def test_samples_of_gaussian_data_have_its_mean_and_std(solver, variance):
    process = Gaussian(variance=variance)
    x, keys = start(batch=64, size=(16, 16), channels=1)
    samples = run(process, solver, exact_noise(process), x, keys)
    # 16384 draws: the std varies by 0.6 % and the mean by 0.004; the steps are coarse by 1 % more.
    assert samples.mean() == pytest.approx(MEAN, abs=0.015)
    assert samples.std() == pytest.approx(STD, rel=0.03)


def test_ddim_of_gaussian_data_is_the_exact_map():
    process = Gaussian(variance="fixed_small")
    x, keys = start()
    c = process.coefficients(jnp.float32(0.999))
    exact = MEAN + STD * (x - c.alpha * MEAN) / jnp.sqrt((c.alpha * STD) ** 2 + c.sigma**2)
    errors = []
    for steps in (50, 200):
        samples = run(process, DDIM(steps=steps), exact_noise(process), x, keys)
        errors.append(np.abs(samples - exact).max())
    # First order: four times the steps make a quarter of the error.
    assert errors[1] < 0.02 and 3 < errors[0] / errors[1] < 5


def test_ddim_with_eta_1_is_ddpm_of_small_variance():
    process = Gaussian(variance="fixed_small")
    x, keys = start()
    ddim = run(process, DDIM(steps=20, eta=1.0), exact_noise(process), x, keys)
    ddpm = run(process, DDPM(steps=20), exact_noise(process), x, keys)
    # The same update in two forms (its first step, clipped variance, is followed by none).
    np.testing.assert_allclose(ddim, ddpm, atol=2e-5)


def test_ddim_without_eta_has_no_randomness():
    process = Gaussian(variance="fixed_small")
    x, keys = start()
    first = run(process, DDIM(steps=5), exact_noise(process), x, keys)
    second = run(process, DDIM(steps=5), exact_noise(process), x, keys[::-1])
    np.testing.assert_array_equal(first, second)
    first = run(process, DDPM(steps=5), exact_noise(process), x, keys)
    second = run(process, DDPM(steps=5), exact_noise(process), x, keys[::-1])
    assert np.abs(first - second).max() > 1e-2


@pytest.mark.parametrize("solver", [DDPM(), DDIM()])
def test_a_flow_is_not_solved(solver):
    x, keys = start()
    with pytest.raises(InputError, match=f"{type(solver).__name__}.*Gaussian.*Flow"):
        solver(Flow(), lambda x, t, c: x, x, {}, keys)
    solver.check(Gaussian())


def test_more_steps_than_levels_are_an_error():
    x, keys = start()
    with pytest.raises(InputError, match="100"):
        DDPM(steps=101)(Gaussian(steps=100), lambda x, t, c: x, x, {}, keys)
