"""KID: scikit-learn's kernel, loops, torch-fidelity, and sets that are alike."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel

from dit_jax.errors import InputError
from dit_jax.metrics import kernel_distance
from tests.metrics import fidelity
from tests.metrics.features import features


def by_loops(x, y):
    """The unbiased estimate of squared MMD as it is written, by scikit-learn's kernel."""
    n = len(x)
    xx, yy, xy = (polynomial_kernel(*p, degree=3, coef0=1) for p in ((x, x), (y, y), (x, y)))
    within = sum(xx[i, j] + yy[i, j] for i in range(n) for j in range(n) if i != j)
    return within / (n * (n - 1)) - 2 * xy.mean()


def test_the_plain_formula():
    """A subset as large as the set is the set."""
    a, b = features(0, 30), features(1, 30, mean=0.5)
    mean, deviation = kernel_distance(a, b, subsets=4, subset_size=30)
    assert mean == pytest.approx(by_loops(a, b), rel=1e-12)
    assert deviation == pytest.approx(0, abs=1e-12 * mean)


def test_subsets_are_drawn_anew_for_each_set():
    a, b = features(0, 50), features(1, 40, mean=0.5)
    rng = np.random.RandomState(7)
    expected = []
    for _ in range(3):
        first, second = (x[rng.permutation(len(x))[:20]] for x in (a, b))
        expected.append(by_loops(first, second))
    found = kernel_distance(a, b, subsets=3, subset_size=20, seed=7)
    np.testing.assert_allclose(found, (np.mean(expected), np.std(expected)), rtol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-4)])
def test_torch_fidelitys_value(dtype, tolerance):
    """With float32 it is theirs that rounds."""
    theirs = fidelity.metric("kid")
    import torch

    a, b = (features(i, 90, 32, mean=i / 10).astype(dtype) for i in (0, 1))
    tensors = map(torch.from_numpy, (a, b))
    settings = {"kid_subsets": 5, "kid_subset_size": 40}
    expected = theirs.kid_features_to_metric(*tensors, **settings, verbose=False)
    found = kernel_distance(a, b, subsets=5, subset_size=40)
    np.testing.assert_allclose(found, list(expected.values()), rtol=tolerance)


def test_sets_that_are_alike_are_near_0():
    x = features(0, 600)
    mean, deviation = kernel_distance(x[:300], x[300:], subsets=20, subset_size=100)
    far, _ = kernel_distance(x[:300], x[300:] + 1, subsets=20, subset_size=100)
    assert abs(mean) < deviation
    assert far > 5 * deviation


def test_bad_features_are_refused():
    a = features(0, 50)
    for b, message in (
        (features(0, 19), "19 features are too few: give at least 20"),
        (features(0, 50, 5), r"\(50, 6\) and \(50, 5\)"),
        (np.full_like(a, np.inf), "not finite"),
    ):
        with pytest.raises(InputError, match=message):
            kernel_distance(a, b, subset_size=20)
