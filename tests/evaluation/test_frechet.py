"""The Frechet distance against its closed forms and scipy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg

from dit_jax.evaluation.frechet import frechet_distance


def features(seed, n=400, d=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_a_set_has_no_distance_from_itself():
    assert frechet_distance(features(0), features(0)) == pytest.approx(0, abs=1e-9)


def test_shift_and_scale_have_closed_forms():
    x = features(0)
    assert frechet_distance(x, x + 2) == pytest.approx(4 * 6)
    spread = np.trace(np.cov(x, rowvar=False))
    centred = x - x.mean(axis=0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * spread)


def test_equals_the_matrix_square_root():
    a, b = features(1), features(2)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_order_does_not_matter_and_few_samples_do_no_harm():
    a, b = features(1), features(2)
    assert frechet_distance(a[::-1], b) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert 0 <= frechet_distance(a[:3], b[:4]) < np.inf
