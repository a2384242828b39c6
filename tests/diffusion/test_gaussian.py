import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import Gaussian
from dit_jax.diffusion.respacing import respace
from dit_jax.errors import InputError
from tests.diffusion.diffusion_helpers import relative_error, to_nchw

INDICES = np.array([0, 1, 2, 17, 500, 998, 999])
BATCH = len(INDICES)


def arrays(channels=4, seed=0):
    """Data within [-1, 1], noise, and a model's output: noise and variance channels."""
    rng = np.random.default_rng(seed)
    x0 = rng.uniform(-1, 1, (BATCH, 2, 3, channels))
    x0[:, 0, 0, :2] = [-1, 1]  # The open bins of the likelihood.
    noise = rng.normal(size=x0.shape)
    output = np.concatenate(
        [noise + 0.1 * rng.normal(size=x0.shape), rng.uniform(-1.2, 1.2, x0.shape)], axis=-1
    )
    return np.float32(x0), np.float32(noise), np.float32(output)


TIMES = jnp.asarray(INDICES / 1000, jnp.float32)


@pytest.fixture(scope="module")
def twin():
    pytest.importorskip("torch")
    from tests.torch_twins.gaussian_diffusion import GaussianDiffusion

    return GaussianDiffusion


@pytest.mark.parametrize("spec", [None, "250", "10", "7,5,3", "ddim50"])
def test_tables_equal_the_twins(spec, twin):
    expected = twin(spec)
    process = Gaussian()
    table = process.transitions(np.arange(1000) if spec is None else respace(1000, spec))
    columns = {
        "index": expected.timestep_map,
        "alpha": expected.sqrt_alphas_cumprod,
        "sigma": expected.sqrt_one_minus_alphas_cumprod,
        "alpha_before": np.sqrt(expected.alphas_cumprod_prev),
        "c_x0": expected.posterior_mean_coef1,
        "c_x": expected.posterior_mean_coef2,
        "log_beta": expected.log_betas,
        "log_posterior": expected.posterior_log_variance_clipped,
    }
    assert set(columns) == set(table._fields)
    for name, column in columns.items():
        # float64 tables, rounded to float32; 1 - abar / before loses three digits of float64.
        np.testing.assert_allclose(getattr(table, name), column, rtol=1e-6, atol=1e-12)
        assert getattr(table, name).dtype == np.float32


def test_tables_follow_their_definitions_by_a_loop():
    """The full process from its betas, with nothing shared with the library."""
    betas = [1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)]
    table, abar, posteriors = Gaussian().transitions(np.arange(1000)), 1.0, []
    for i, beta in enumerate(betas):
        before, abar = abar, abar * (1 - beta)
        posteriors.append(beta * (1 - before) / (1 - abar))
        assert table.alpha[i] == pytest.approx(abar**0.5, rel=1e-6)
        assert table.sigma[i] == pytest.approx((1 - abar) ** 0.5, rel=1e-6)
        assert table.c_x0[i] == pytest.approx(beta * before**0.5 / (1 - abar), rel=1e-6)
        expected = (1 - before) * (1 - beta) ** 0.5 / (1 - abar)
        assert table.c_x[i] == pytest.approx(expected, rel=1e-6)
        assert table.log_beta[i] == pytest.approx(np.log(beta), rel=1e-6)
    np.testing.assert_allclose(table.log_posterior[1:], np.log(posteriors[1:]), rtol=1e-6)
    assert table.log_posterior[0] == table.log_posterior[1]


@pytest.mark.parametrize("kept", [[0], [999], [0, 999], [3, 10, 11, 500], list(range(0, 1000, 7))])
def test_a_respaced_process_keeps_the_marginals(kept):
    full = Gaussian().transitions(np.arange(1000))
    part = Gaussian().transitions(np.array(kept))
    np.testing.assert_allclose(part.alpha, full.alpha[kept], rtol=1e-6)
    np.testing.assert_allclose(part.sigma, full.sigma[kept], rtol=1e-6)
    np.testing.assert_allclose(part.alpha_before[1:], part.alpha[:-1], rtol=1e-6)
    assert part.alpha_before[0] == 1
    assert all(np.isfinite(column).all() for column in part)
    # The mean of q(x before | x, x0) has the mean of the marginal before.
    mean = part.c_x0 + part.c_x * part.alpha
    np.testing.assert_allclose(mean, part.alpha_before, rtol=1e-5)


@pytest.mark.parametrize("steps", [25, 100, 4000])
def test_other_numbers_of_steps_scale_the_betas(steps):
    table = Gaussian(steps=steps).transitions(np.arange(steps))
    scale = 1000 / steps
    assert np.exp(table.log_beta[0]) == pytest.approx(scale * 1e-4, rel=1e-5)
    assert np.exp(table.log_beta[-1]) == pytest.approx(scale * 0.02, rel=1e-5)


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_too_few_steps_are_an_error(steps):
    with pytest.raises(InputError, match=f"{steps} steps"):
        Gaussian(steps=steps)


def test_corrupt_equals_the_twins_q_sample(twin):
    x0, noise, _ = arrays()
    expected = twin().q_sample(to_nchw(x0), INDICES, to_nchw(noise))
    # One float32 sum.
    assert relative_error(Gaussian().corrupt(x0, noise, TIMES), expected) <= 1e-6


def test_loss_equals_the_twins(twin):
    x0, noise, output = arrays()
    expected = twin().loss_terms(to_nchw(output), to_nchw(x0), INDICES, to_nchw(noise))
    loss, metrics = Gaussian().loss(output, x0, noise, TIMES)
    assert loss.shape == (BATCH,) and loss.dtype == jnp.float32
    # KL terms are differences of float32 numbers of order 1, and at index 1 are divided by the
    # posterior variance; measured 2e-6 of the largest.
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-4, atol=1e-4)
    for name in ("mse", "vb"):
        assert metrics[name] == pytest.approx(expected[name].mean(), rel=1e-4)


def test_the_bound_at_index_0_is_a_likelihood(twin):
    """It is one term among others in the mean above; here it is alone."""
    x0, noise, output = (a[:1] for a in arrays())
    expected = twin().loss_terms(to_nchw(output), to_nchw(x0), np.array([0]), to_nchw(noise))
    _, metrics = Gaussian().loss(output, x0, noise, TIMES[:1])
    assert metrics["vb"] == pytest.approx(expected["vb"][0], rel=1e-4)


def test_the_bound_trains_the_variance_alone():
    x0, noise, output = arrays()
    total = lambda output: Gaussian().loss(output, x0, noise, TIMES)[0].sum()  # noqa: E731
    gradient = jax.grad(total)(output)
    mse = lambda output: jnp.square(output - noise).mean(axis=(1, 2, 3)).sum()  # noqa: E731
    np.testing.assert_allclose(gradient[..., :4], jax.grad(mse)(output[..., :4]), rtol=1e-5)
    assert np.abs(gradient[..., 4:]).max(axis=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_a_fixed_variance_leaves_the_squared_error(variance):
    x0, noise, output = arrays()
    process = Gaussian(variance=variance)
    loss, metrics = process.loss(output[..., :4], x0, noise, TIMES)
    np.testing.assert_allclose(
        loss, np.square(output[..., :4] - noise).mean(axis=(1, 2, 3)), rtol=1e-5
    )
    assert metrics == {} and process.output_channels(4) == 4
    assert Gaussian().output_channels(4) == 8


@pytest.mark.parametrize("spec", [None, "50", "10,5"])
def test_reverse_equals_the_twin(spec, twin):
    expected = twin(spec)
    x, _, output = arrays()
    rows = np.linspace(0, expected.num_steps - 1, BATCH).round().astype(int)
    process = Gaussian()
    table = process.transitions(np.arange(1000) if spec is None else respace(1000, spec))
    row = type(table)(*(column[rows][:, None, None, None] for column in table))
    mean, log_variance = process.reverse(x, output, row)
    reference = expected.p_mean_log_variance(to_nchw(output), to_nchw(x), rows)
    # x0 = (x - sigma noise) / alpha loses digits near pure noise, where c_x0 makes it small again.
    assert relative_error(mean, reference["mean"]) <= 1e-5
    assert relative_error(log_variance, reference["log_variance"]) <= 1e-6


def test_fixed_variances_are_the_bounds():
    x, _, output = arrays()
    table = Gaussian().transitions(np.arange(1000))
    row = type(table)(*(column[500] for column in table))
    large = Gaussian(variance="fixed_large").reverse(x, output[..., :4], row)
    small = Gaussian(variance="fixed_small").reverse(x, output[..., :4], row)
    np.testing.assert_array_equal(large[0], small[0])
    np.testing.assert_array_equal(large[1], np.full(x.shape, row.log_beta))
    np.testing.assert_array_equal(small[1], np.full(x.shape, row.log_posterior))
    assert large[1][0, 0, 0, 0] > small[1][0, 0, 0, 0]


def test_estimates_undo_the_noise():
    x0, noise, output = arrays()
    process, t = Gaussian(), TIMES[:5]  # At 998 and 999 alpha is 0.006, and x0 lost.
    x = process.corrupt(x0[:5], noise[:5], t)
    perfect = np.concatenate([noise[:5], output[:5, ..., 4:]], axis=-1)
    estimate = process.estimate(x, t, perfect)
    # Divided by alpha >= 0.27: 4 roundings of 6e-8 times 4.
    np.testing.assert_allclose(estimate.x0, x0[:5], atol=2e-6)
    np.testing.assert_array_equal(estimate.noise, noise[:5])
    sigma = process.coefficients(t).sigma[:, None, None, None]
    np.testing.assert_allclose(estimate.score, -noise[:5] / sigma, rtol=1e-5)
    assert estimate.velocity is None


def test_estimate_takes_a_scalar_time():
    x, _, output = arrays()
    process = Gaussian()
    one = process.estimate(x, jnp.float32(0.5), output)
    many = process.estimate(x, jnp.full(BATCH, 0.5), output)
    np.testing.assert_array_equal(one.x0, many.x0)
