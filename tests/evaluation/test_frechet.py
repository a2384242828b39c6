import numpy as np
import pytest
import scipy.linalg

from dit_jax.evaluation.frechet import frechet_distance


def textbook(a, b):
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2), as the reference FID computes it."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)


def features(seed, count=200, dimension=6, mean=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimension)) @ rng.normal(size=(dimension, dimension)) + mean


def whitened(count=50, dimension=4):
    """Features whose mean is 0 and covariance the identity, up to rounding."""
    x = np.random.default_rng(0).normal(size=(count, dimension))
    x -= x.mean(0)
    covariance = np.atleast_2d(np.cov(x, rowvar=False))
    return x @ np.linalg.inv(np.linalg.cholesky(covariance)).T


def test_a_set_has_no_distance_to_itself():
    a = features(0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_a_shift_is_its_squared_length():
    a = features(0)
    shift = np.array([1.0, -2.0, 0.0, 0.5, 0.0, 3.0])
    assert frechet_distance(a, a + shift) == pytest.approx(np.square(shift).sum(), rel=1e-9)


def test_scales_differ_by_the_squares_of_their_differences():
    a = whitened()
    scales = np.array([1.0, 2.0, 3.0, 0.5])
    expected = np.square(scales - 1).sum()
    assert frechet_distance(a, a * scales) == pytest.approx(expected, rel=1e-9)


def test_known_normals():
    """Two normals in a plane, one turned by 45 degrees: tr(A + B) - 2 tr (A B)^1/2 by hand."""
    a = whitened(dimension=2)
    turn = np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2)
    one, other = a * [1.0, 3.0], a * [1.0, 3.0] @ turn
    # A = diag(1, 9) and B = turn^T A turn; the root of a 2 x 2 matrix M has the trace
    # sqrt(tr M + 2 sqrt(det M)), with tr(A B) = (1 + 9)^2 / 2 = 50 and det(A B) = 81.
    expected = 20 - 2 * np.sqrt(50 + 2 * 9)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_textbooks_formula(seed):
    a, b = features(seed), features(seed + 10, count=150, mean=0.7)
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-8)


def test_it_is_symmetric_and_blind_to_order():
    a, b = features(0), features(1, mean=0.3)
    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-9)
    shuffled = np.random.default_rng(0).permutation(a)
    assert frechet_distance(shuffled, b[::-1]) == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize("count", [2, 5, 19])
def test_fewer_samples_than_dimensions_are_finite(count):
    a, b = features(0, count, 20), features(1, 100, 20)
    for one, other in ((a, b), (b, a)):
        distance = frechet_distance(one, other)
        assert np.isfinite(distance) and distance >= 0
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(a, b) > 1


def test_constant_features_do_no_harm():
    a = features(0)
    a[:, 2] = 4.0
    assert frechet_distance(a, a + np.eye(6)[2]) == pytest.approx(1.0, rel=1e-6)


def test_bytes_and_half_precision_are_computed_in_float64():
    a = np.random.default_rng(0).integers(0, 256, (50, 3), np.uint8)
    assert frechet_distance(a, 255 - a) == pytest.approx(textbook(a * 1.0, 255.0 - a), rel=1e-6)
    large = 1e4 + features(0, dimension=2)
    assert frechet_distance(large.astype(np.float32), large) < 1e-4


def test_one_feature_is_enough():
    a = whitened(dimension=1)
    assert frechet_distance(a, 3 * a + 1) == pytest.approx(4 + 1, rel=1e-9)
