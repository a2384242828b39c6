"""Moments of features: parts in any order, of one process or two, and what is no Gaussian."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.metrics import Gaussian, Moments, frechet_distance
from tests.metrics import gaussian_program
from tests.metrics.features import features
from tests.parallel import pair


def assert_same(ours, theirs, tolerance=1e-12):
    assert ours.count == theirs.count
    scale = np.abs(theirs.covariance).max()
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=tolerance, atol=tolerance * scale)
    np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_numpys_mean_and_covariance(dtype):
    x = features(0, mean=100.0).astype(dtype)
    found = Gaussian.of(x)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    exact = x.astype(np.float64)
    assert_same(found, Gaussian(exact.mean(0), np.cov(exact, rowvar=False), 200))


@hypothesis.given(
    cuts=st.lists(st.integers(1, 199), max_size=6, unique=True).map(sorted),
    seed=st.integers(0, 99),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_neither_order_nor_parts_make_a_difference(cuts, seed, offset):
    x = features(1, mean=offset)
    rng = np.random.default_rng(seed)
    parts = np.split(rng.permutation(x), cuts)
    streamed, merged = Moments.none(6), Moments.none(6)
    for part in parts:
        streamed = streamed.add(part)
    for number in rng.permutation(len(parts)):
        merged = merged.merge(Moments.none(6).add(parts[number]))
    whole = Gaussian.of(x)
    assert_same(streamed.gaussian(), whole, 1e-9)
    assert_same(merged.gaussian(), whole, 1e-9)
    other = Gaussian.of(features(2, mean=offset))
    expected = frechet_distance(whole, other)
    assert frechet_distance(streamed.gaussian(), other) == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What two processes of two devices found."""
    folder = tmp_path_factory.mktemp("gaussian")
    pair.run_module("tests.metrics.gaussian_program", str(folder))
    return [dict(np.load(folder / f"{index}.npz")) for index in (0, 1)]


@pytest.mark.parametrize("name", gaussian_program.CASES)
def test_two_processes_find_what_one_finds(told, name):
    first, second = ([found[f"{name} {key}"] for key in ("mean", "scatter")] for found in told)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    x = np.concatenate(gaussian_program.CASES[name])
    assert told[0][f"{name} count"] == len(x)
    found = Moments(len(x), *first).gaussian()
    assert_same(found, Gaussian.of(x), 1e-11)


def test_processes_that_saw_nothing_know_nothing(told):
    assert told[0]["nothing count"] == told[1]["nothing count"] == 0


@pytest.mark.parametrize("count", [0, 1])
def test_one_feature_has_no_covariance(count):
    with pytest.raises(InputError, match=f"covariance of {count} features is not defined"):
        Moments.none(3).merge(Moments(count, np.zeros(3), np.zeros((3, 3)))).gaussian()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_is_refused(bad):
    x = features(0)
    x[3, 2] = bad
    with pytest.raises(InputError, match="values that are not finite"):
        Gaussian.of(x)


@pytest.mark.parametrize("shapes", [((3,), (2, 2)), ((3,), (3,)), ((3, 1), (3, 3))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(InputError, match="a mean .* and a covariance"):
        Gaussian(*map(np.zeros, shapes))
