import statistics

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.diffusion import (
    GVP,
    VP,
    Flow,
    Gaussian,
    Linear,
    LogitNormal,
    Uniform,
    dimension_shift,
)
from dit_jax.diffusion.time import shift_time

few = settings(deadline=None, derandomize=True, max_examples=30)
unit, shifts = st.floats(0, 1), st.floats(0.1, 10)

KEY = jax.random.key(0)
BATCH = 40_000
# The std of the quantile q of a uniform sample is sqrt(q (1 - q) / BATCH) <= 0.25 %; four of them.
# The densities below fall short of half a uniform's at no quantile that is asked for.
TOLERANCE = 0.02


@few
@given(unit, shifts)
def test_shift_is_its_closed_form(t, shift):
    # In odds t / (1 - t) of noise, the shift is a factor.
    shifted = shift_time(t, shift)
    assert 0 <= shifted <= 1 + 1e-12
    assert shifted * (1 - t) == pytest.approx(shift * t * (1 - shifted), abs=1e-9)


def test_the_shift_for_many_dimensions_is_the_papers():
    # RAE shifts 16 x 16 tokens of 768 channels by 6.93, and latents of Stable Diffusion not at all.
    assert dimension_shift((16, 16, 768)) == pytest.approx(48**0.5)
    assert dimension_shift((32, 32, 4)) == 1


@few
@given(unit, shifts, shifts)
def test_shifts_compose(t, first, second):
    twice = shift_time(shift_time(t, first), second)
    assert twice == pytest.approx(shift_time(t, first * second), abs=1e-9)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_shift_keeps_ends_and_order(shift):
    t = shift_time(np.linspace(0, 1, 11), shift)
    assert (t[0], t[-1]) == (0, pytest.approx(1))
    assert (np.diff(t) > 0).all()
    assert np.sign(t[5] - 0.5) == np.sign(shift - 1)


@pytest.mark.parametrize("q", [0.1, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.5), (-0.4, 1.2)])
def test_logit_normal_quantiles(mean, std, q):
    t = LogitNormal(mean, std)(KEY, BATCH)
    expected = 1 / (1 + np.exp(-statistics.NormalDist(mean, std).inv_cdf(q)))
    assert np.quantile(t, q) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_uniform_quantiles(q):
    assert np.quantile(Uniform()(KEY, BATCH), q) == pytest.approx(q, abs=TOLERANCE)


@pytest.mark.parametrize("sampler", [Uniform(), LogitNormal()])
def test_draws_follow_their_key(sampler):
    t = sampler(KEY, 8)
    assert t.shape == (8,) and t.dtype == np.float32
    np.testing.assert_array_equal(t, sampler(KEY, 8))
    assert (t != sampler(jax.random.key(1), 8)).any()


@pytest.mark.parametrize(
    ("flow", "low", "high"),
    [
        (Flow(), 0, 1),
        (Flow(GVP()), 0, 1),
        (Flow(VP()), 1e-5, 1),
        (Flow(VP(), "noise"), 1e-5, 1),
        (Flow(Linear(), "noise"), 1e-3, 1 - 1e-3),
        (Flow(GVP(), "score"), 1e-3, 1 - 1e-3),
        (Flow(Linear(), "x0"), 1e-3, 1 - 1e-3),
    ],
)
def test_training_times_fill_the_paths_interval(flow, low, high):
    t = np.asarray(flow.sample_time(KEY, BATCH))
    # 1e-7: the rounding of the ends. The expected gap at an end is 1 / BATCH; twenty of them.
    assert low - 1e-7 <= t.min() <= low + 5e-4 and high - 5e-4 <= t.max() <= high + 1e-7


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_training_times_are_shifted(shift):
    plain = np.asarray(Flow(time=LogitNormal()).sample_time(KEY, 1000), np.float64)
    shifted = Flow(time=LogitNormal(), shift=shift).sample_time(KEY, 1000)
    np.testing.assert_allclose(shifted, shift * plain / (1 + (shift - 1) * plain), rtol=1e-5)


@pytest.mark.parametrize("steps", [50, 1000])
def test_gaussian_times_are_its_indices_equally_often(steps):
    process = Gaussian(steps=steps)
    t = process.sample_time(KEY, BATCH)
    counts = np.bincount(np.asarray(process.index(t)), minlength=steps)
    assert len(counts) == steps
    np.testing.assert_allclose(t, np.asarray(process.index(t)) / steps, rtol=1e-6)
    # Poisson counts of mean m vary by sqrt(m); five of them, for the largest of many.
    mean = BATCH / steps
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)


@pytest.mark.parametrize("steps", [100, 1000, 4000])
def test_gaussian_index_survives_the_trip_through_float32_time(steps):
    process, index = Gaussian(steps=steps), np.arange(steps)
    np.testing.assert_array_equal(process.index(np.float32(index) / np.float32(steps)), index)
    np.testing.assert_array_equal(process.model_time(np.float32(index) / np.float32(steps)), index)
