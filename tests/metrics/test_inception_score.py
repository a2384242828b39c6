"""The Inception Score: known values, the plain formula, torch-fidelity."""

import numpy as np
import pytest
import scipy.special

from dit_jax.errors import InputError
from dit_jax.metrics import inception_score
from tests.metrics import fidelity


def some_logits(count=120, classes=11, seed=0):
    return np.random.default_rng(seed).normal(scale=3, size=(count, classes))


def plain(logits, split_size):
    """ADM's way: probabilities first, then their logarithms."""
    scores = []
    for i in range(0, len(logits), split_size):
        p = scipy.special.softmax(logits[i : i + split_size], axis=1)
        kl = (p * (np.log(p) - np.log(p.mean(0)))).sum(1)
        scores.append(np.exp(kl.mean()))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize("split_size", [30, 50, 120, 5000])  # 50 leaves a split of 20.
def test_the_plain_formula(split_size):
    logits = some_logits()
    found = inception_score(logits, split_size)
    np.testing.assert_allclose(found, plain(logits, split_size), rtol=1e-12, atol=1e-12)


def test_splits_of_5000_unless_asked_otherwise():
    logits = some_logits(5200)
    np.testing.assert_allclose(inception_score(logits), plain(logits, 5000), rtol=1e-12)


def test_images_that_all_look_alike_have_the_score_1():
    logits = np.repeat(some_logits(1), 20, axis=0)
    assert inception_score(logits, 10) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize("offset", [0, -1e4])
def test_sure_images_of_all_classes_have_the_number_of_classes(offset):
    """Neither exponentials of the logits are finite, nor logarithms of their softmax."""
    logits = np.tile(1e4 * np.eye(8) + offset, (5, 1)).astype(np.float32)
    assert inception_score(logits, 8) == pytest.approx((8, 0), rel=1e-12, abs=1e-12)


def test_a_class_that_is_never_seen_does_no_harm():
    logits = np.tile(1e4 * np.eye(8), (5, 1))[:4]
    assert inception_score(logits) == pytest.approx((4, 0), rel=1e-12)


def test_float32_is_computed_in_float64():
    logits = some_logits().astype(np.float32)
    exact = plain(logits.astype(np.float64), 30)
    np.testing.assert_allclose(inception_score(logits, 30), exact, rtol=1e-12)


def test_the_order_within_a_split_makes_no_difference():
    logits = some_logits()
    shuffled = np.concatenate([np.random.default_rng(1).permutation(logits[:60]), logits[60:]])
    expected = inception_score(logits, 60)
    np.testing.assert_allclose(inception_score(shuffled, 60), expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_torch_fidelitys_value(dtype):
    theirs = fidelity.metric("isc")
    import torch

    logits = some_logits(200).astype(dtype)
    expected = theirs.isc_features_to_metric(torch.from_numpy(logits), splits=10)
    shuffled = logits[np.random.RandomState(2020).permutation(len(logits))]
    found = inception_score(shuffled, split_size=20)
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-9)


def test_bad_logits_are_refused():
    for logits, message in (
        (some_logits()[0], r"features \(11,\)"),
        (some_logits(0), "0 features are too few"),
        (np.full((4, 3), np.nan), "not finite"),
    ):
        with pytest.raises(InputError, match=message):
            inception_score(logits)
