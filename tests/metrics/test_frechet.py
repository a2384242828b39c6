"""The Frechet distance: known values, the textbook's formula, and covariances without full rank."""

import logging

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from dit_jax.errors import InputError
from dit_jax.metrics import Gaussian, frechet_distance
from tests.metrics import fidelity
from tests.metrics.features import features


def distance(a, b):
    return frechet_distance(Gaussian.of(a), Gaussian.of(b))


def textbook(a, b):
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2), as the reference FID computes it."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)


def whitened(count=50, dimension=4):
    """Features whose mean is 0 and covariance the identity, up to rounding."""
    x = np.random.default_rng(0).normal(size=(count, dimension))
    x -= x.mean(0)
    covariance = np.atleast_2d(np.cov(x, rowvar=False))
    return x @ np.linalg.inv(np.linalg.cholesky(covariance)).T


def spectrum(values, seed=0):
    """A covariance of these eigenvalues in a random basis."""
    basis = scipy.stats.ortho_group.rvs(len(values), random_state=seed)
    covariance = (basis * values) @ basis.T
    return Gaussian(np.zeros(len(values)), (covariance + covariance.T) / 2)


def test_a_set_has_no_distance_to_itself():
    a = features(0)
    assert distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("smallest", [1e-4, 1e-8, 1e-12, 0])
def test_nor_has_one_whose_features_hardly_vary(smallest):
    """Inception's variances span many orders of magnitude."""
    values = np.geomspace(20, smallest, 300) if smallest else np.repeat([20.0, 0.0], 150)
    a = spectrum(values)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_a_shift_is_its_squared_length():
    a = features(0)
    shift = np.array([1.0, -2.0, 0.0, 0.5, 0.0, 3.0])
    assert distance(a, a + shift) == pytest.approx(np.square(shift).sum(), rel=1e-9)


def test_scales_differ_by_the_squares_of_their_differences():
    a = whitened()
    scales = np.array([1.0, 2.0, 3.0, 0.5])
    assert distance(a, a * scales) == pytest.approx(np.square(scales - 1).sum(), rel=1e-9)


def test_commuting_covariances_differ_by_their_roots():
    """Of one basis: the sum of (sqrt(a_i) - sqrt(b_i))^2, many of them near nothing."""
    one, other = np.geomspace(20, 1e-6, 300), np.geomspace(5, 1e-9, 300)
    expected = np.square(np.sqrt(one) - np.sqrt(other)).sum()
    assert frechet_distance(spectrum(one), spectrum(other)) == pytest.approx(expected, rel=1e-9)


def test_known_normals():
    """Two normals in a plane, one turned by 45 degrees: tr(A + B) - 2 tr (A B)^1/2 by hand."""
    a = whitened(dimension=2)
    turn = np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2)
    one, other = a * [1.0, 3.0], a * [1.0, 3.0] @ turn
    # A = diag(1, 9) and B = turn^T A turn; the root of a 2 x 2 matrix M has the trace
    # sqrt(tr M + 2 sqrt(det M)), with tr(A B) = (1 + 9)^2 / 2 = 50 and det(A B) = 81.
    expected = 20 - 2 * np.sqrt(50 + 2 * 9)
    assert distance(one, other) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_textbooks_formula(seed):
    a, b = features(seed), features(seed + 10, count=150, mean=0.7)
    assert distance(a, b) == pytest.approx(textbook(a, b), rel=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_torch_fidelitys_value(seed):
    theirs = fidelity.metric("fid")
    a, b = features(seed, 400, 64), features(seed + 10, 300, 64, mean=0.1)
    statistics = [{"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (a, b)]
    expected = theirs.fid_statistics_to_metric(*statistics, False)[theirs.KEY_METRIC_FID]
    assert distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_it_is_symmetric_and_blind_to_order():
    a, b = features(0), features(1, mean=0.3)
    assert distance(b, a) == pytest.approx(distance(a, b), rel=1e-9)
    shuffled = np.random.default_rng(0).permutation(a)
    assert distance(shuffled, b[::-1]) == pytest.approx(distance(a, b), rel=1e-9)


@pytest.mark.parametrize("count", [2, 5, 19])
@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_fewer_samples_than_dimensions(count):
    """With A = X^T X for few rows X, the roots of A B are those of the small X B X^T."""
    a, b = features(0, count, 20), features(1, 100, 20)
    x, cov_b = (a - a.mean(0)) / np.sqrt(count - 1), np.cov(b, rowvar=False)
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(x @ cov_b @ x.T), 0))
    means = np.square(a.mean(0) - b.mean(0)).sum()
    expected = means + np.square(x).sum() + np.trace(cov_b) - 2 * roots.sum()
    assert distance(a, b) == pytest.approx(expected, abs=1e-5)
    assert distance(b, a) == pytest.approx(distance(a, b), rel=1e-9)
    assert distance(a, a) == pytest.approx(0, abs=1e-6)
    assert distance(a, b) == pytest.approx(textbook(a, b), abs=1e-3)


def test_spaces_that_do_not_meet():
    """Nothing of one set's variance is in the other's, so that the root vanishes."""
    a, b = features(0, 10, 3), features(1, 8, 3)
    one, other = np.pad(a, ((0, 0), (0, 3))), np.pad(b, ((0, 0), (3, 0)))
    traces = sum(np.trace(np.cov(x, rowvar=False)) for x in (a, b))
    means = np.square(a.mean(0)).sum() + np.square(b.mean(0)).sum()
    assert distance(one, other) == pytest.approx(means + traces, rel=1e-9)


@pytest.mark.parametrize(("count", "warned"), [(23, True), (24, False)])
def test_too_few_features_are_warned_of_once(caplog, count, warned):
    a, b = features(0, count, 23), features(1, 50, 23)
    with caplog.at_level(logging.WARNING, "dit_jax.metrics"):
        distance(a, b)
        distance(b, a)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warned
    assert all("23 features in 23 dimensions" in m and "at least 24" in m for m in messages)


def test_constant_features_do_no_harm():
    a = features(0)
    a[:, 2] = 4.0
    assert distance(a, a + np.eye(6)[2]) == pytest.approx(1.0, rel=1e-9)
    same = np.ones((5, 6))
    assert distance(same, a) == pytest.approx(
        np.square(a.mean(0) - 1).sum() + a.var(0, ddof=1).sum(), rel=1e-9
    )
    assert distance(same, same) == 0


def test_bytes_and_half_precision_are_computed_in_float64():
    a = np.random.default_rng(0).integers(0, 256, (50, 3), np.uint8)
    assert distance(a, 255 - a) == pytest.approx(textbook(a * 1.0, 255.0 - a), rel=1e-6)
    large = 1e4 + features(0, dimension=2)
    assert distance(large.astype(np.float32), large) < 1e-4


def test_one_feature_is_enough():
    a = whitened(dimension=1)
    assert distance(a, 3 * a + 1) == pytest.approx(4 + 1, rel=1e-9)


def test_other_spaces_have_no_distance():
    with pytest.raises(InputError, match="of 6 and of 5 dimensions"):
        distance(features(0), features(0, dimension=5))
