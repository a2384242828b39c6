import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import (
    DDIM,
    DDPM,
    Autoguidance,
    ClassifierFree,
    Dopri5,
    Euler,
    EulerMaruyama,
    Flow,
    Gaussian,
    Heun,
    HeunSDE,
    sample_keys,
    sample_loop,
)
from dit_jax.diffusion.solvers.solver import normal_like
from dit_jax.errors import InputError
from tests.diffusion.diffusion_helpers import MEAN, STD, exact_denoiser, jit, marginal

SHAPE = (3, 2, 4)


def denoise(outputs, x, t, condition):
    """Noise (or a velocity, or a variance) that depends on the label."""
    label = condition["label"].astype(jnp.float32)[:, None, None, None]
    out = 0.3 * x + 0.5 * jnp.tanh(x + label + t)
    return jnp.concatenate([out, jnp.tanh(out)], axis=-1) if outputs == 2 else out


def sample(process, solver, indices, seed=0, guidance=None):
    run = functools.partial(denoise, process.output_channels(4) // 4)
    if guidance is not None:
        run = guidance(run, lambda condition: {"label": jnp.full_like(condition["label"], 9)})

    @jit
    def loop(keys, condition):
        return sample_loop(process, solver, run, condition, keys, SHAPE)

    return loop(sample_keys(seed, jnp.asarray(indices)), {"label": jnp.asarray(indices) % 3})


SOLVERS = [
    (Gaussian(), DDPM(steps=5)),
    (Gaussian(), DDIM(steps=5, eta=0.5)),
    (Flow(), Euler(5)),
    (Flow(), Heun(5)),
    (Flow(), Dopri5()),
    (Flow(), EulerMaruyama(5)),
    (Flow(), HeunSDE(5)),
]
IDS = [type(solver).__name__ for _, solver in SOLVERS]


@pytest.mark.parametrize(("process", "solver"), SOLVERS, ids=IDS)
def test_a_sample_depends_on_its_number_and_not_on_its_batch(process, solver):
    together = np.asarray(sample(process, solver, [0, 1, 2, 3, 4, 5]))
    assert together.shape == (6, *SHAPE) and together.dtype == np.float32
    assert np.isfinite(together).all()
    split = np.concatenate([sample(process, solver, i) for i in ([0, 1, 4], [2, 3, 5])])
    # Programs of other sizes may round differently.
    scale = np.abs(together).max()
    np.testing.assert_allclose(split, together[[0, 1, 4, 2, 3, 5]], rtol=0, atol=1e-5 * scale)
    assert len(np.unique(together.reshape(6, -1), axis=0)) == 6


@pytest.mark.parametrize(("process", "solver"), [SOLVERS[0], SOLVERS[5]])
def test_samples_follow_their_seed(process, solver):
    first = sample(process, solver, [0, 1])
    np.testing.assert_array_equal(first, sample(process, solver, [0, 1]))
    assert np.abs(first - sample(process, solver, [0, 1], seed=1)).max() > 1e-2


def test_keys_are_a_function_of_seed_and_number():
    data = lambda seed, numbers: jax.random.key_data(sample_keys(seed, jnp.array(numbers)))  # noqa: E731
    np.testing.assert_array_equal(data(0, [3, 1]), data(0, [1, 2, 3])[np.array([2, 0])])
    assert len(np.unique(np.concatenate([data(0, range(50)), data(1, range(50))]), axis=0)) == 100


def test_the_start_and_the_steps_have_noise_of_their_own():
    """With one key for both, the first step would add the start again."""

    def solver(process, denoise, x, condition, keys):
        return jnp.stack([x, normal_like(keys, x, 0), normal_like(keys, x, 1)])

    keys = sample_keys(0, jnp.arange(64))
    draws = np.asarray(jit(lambda keys: sample_loop(Flow(), solver, None, {}, keys, SHAPE))(keys))
    assert draws.shape == (3, 64, *SHAPE)
    # 1536 draws: a mean or correlation varies by 0.026, and a std by 0.018; four of them.
    correlations = np.corrcoef(draws.reshape(3, -1))[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 0.1
    np.testing.assert_allclose(draws.mean(axis=(1, 2, 3, 4)), 0, atol=0.1)
    np.testing.assert_allclose(draws.std(axis=(1, 2, 3, 4)), 1, atol=0.08)


@pytest.mark.parametrize(
    ("process", "solver"),
    [SOLVERS[0], SOLVERS[2], pytest.param(*SOLVERS[4], marks=pytest.mark.slow)],
)
def test_guidance_works_under_every_loop(process, solver):
    plain = sample(process, solver, [0, 1])
    alike = sample(process, solver, [0, 1], guidance=ClassifierFree(1.0))
    scale = np.abs(plain).max()
    np.testing.assert_allclose(alike, plain, rtol=0, atol=1e-4 * scale)
    guided = sample(process, solver, [0, 1], guidance=ClassifierFree(3.0))
    assert np.abs(guided - plain).max() > 1e-2 * scale
    late = sample(process, solver, [0, 1], guidance=ClassifierFree(3.0, interval=(2.0, 3.0)))
    np.testing.assert_allclose(late, plain, rtol=0, atol=1e-4 * scale)


def test_gaussian_data_comes_out_of_the_loop():
    """From the noise's own normal(0, 1): every draw of its own, so the data's mean and std."""
    process = Flow()
    keys = sample_keys(0, jnp.arange(64))
    run = jit(
        lambda keys: sample_loop(process, Heun(30), exact_denoiser(process), {}, keys, (16, 16, 1))
    )
    samples = run(keys)
    # 16384 draws: the mean varies by 0.004 and the std by 0.6 %; four of them.
    assert samples.mean() == pytest.approx(MEAN, abs=0.016)
    assert samples.std() == pytest.approx(STD, rel=0.025)


def test_autoguidance_away_from_a_wider_model_narrows_the_samples():
    """The weak model believes in wider data; guided samples gather where the strong one is sure."""
    process = Flow()

    def wide(x, t, condition):
        mean, _ = marginal(process, t)
        c = process.coefficients(t)
        variance = (c.alpha * 3 * STD) ** 2 + c.sigma**2
        noise = c.sigma * (x - mean) / variance
        x0 = MEAN + c.alpha * (3 * STD) ** 2 * (x - mean) / variance
        return noise - x0

    guided = Autoguidance(2.0)(exact_denoiser(process), wide)
    keys = sample_keys(0, jnp.arange(16))
    samples = jit(lambda keys: sample_loop(process, Heun(30), guided, {}, keys, (8, 8, 1)))(keys)
    assert samples.mean() == pytest.approx(MEAN, abs=0.05)
    assert samples.std() < 0.8 * STD


@pytest.mark.parametrize(
    ("process", "solver"),
    [(Flow(), DDPM()), (Flow(), DDIM()), (Gaussian(), Euler()), (Gaussian(), EulerMaruyama())],
)
def test_a_solver_that_does_not_fit_the_process_is_an_error(process, solver):
    with pytest.raises(InputError, match="choose DDPM or DDIM for Gaussian"):
        sample(process, solver, [0])
