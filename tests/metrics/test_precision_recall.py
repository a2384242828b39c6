"""Improved precision and recall: known sets, a loop in float64, torch-fidelity, blocks."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from dit_jax.errors import InputError
from dit_jax.metrics import precision_recall
from tests.metrics import fidelity

SIZES = (83, 61)


def clusters(seed, shift=0.0):
    """Two sets some of whose members lie among the other's."""
    rng = np.random.default_rng(seed)
    centers = 4 * rng.normal(size=(5, 16))
    return [
        (centers[rng.integers(i, i + 3, size)] + rng.normal(size=(size, 16)) + shift).astype("f4")
        for i, size in zip((0, 2), SIZES)
    ]


def naive(samples, reference, neighbours=3):
    samples, reference = samples.astype(np.float64), reference.astype(np.float64)

    def share(x, others):
        nearest = NearestNeighbors(n_neighbors=neighbours + 1).fit(others)
        radii = nearest.kneighbors(others)[0][:, -1]
        inside = [(np.linalg.norm(others - one, axis=1) <= radii).any() for one in x]
        return np.mean(inside)

    return share(samples, reference), share(reference, samples)


@pytest.mark.parametrize("seed", range(4))
def test_a_loop_in_float64(seed):
    samples, reference = clusters(seed)
    found = precision_recall(samples, reference)
    assert found == naive(samples, reference)
    assert min(found) > 0 and max(found) < 1
    assert precision_recall(reference, samples) == found[::-1]


@pytest.mark.parametrize("block_size", [8, 24, 64, 83, 5000])
def test_blocks_make_no_difference(block_size):
    samples, reference = clusters(0)
    assert precision_recall(samples, reference, block_size=block_size) == naive(samples, reference)


@pytest.mark.parametrize("neighbours", [1, 5])
def test_other_numbers_of_neighbours(neighbours):
    samples, reference = clusters(0)
    found = precision_recall(samples, reference, neighbours)
    assert found == naive(samples, reference, neighbours)


@hypothesis.given(seed=st.integers(0, 99))
@hypothesis.settings(max_examples=10, deadline=None)
def test_neither_order_nor_place_makes_a_difference(seed):
    rng = np.random.default_rng(seed)
    moved = [rng.permutation(x) for x in clusters(1, shift=1000.0)]
    assert precision_recall(*moved) == precision_recall(*clusters(1))


@pytest.mark.parametrize("seed", range(4))
def test_torch_fidelitys_value(seed):
    theirs = fidelity.metric("prc")
    import torch

    samples, reference = clusters(seed)
    expected = theirs.prc_features_to_metric(
        *(torch.from_numpy(x.astype(np.float64)) for x in (samples, reference)), verbose=False
    )
    found = precision_recall(samples, reference)
    # Its means are float32.
    assert found == pytest.approx((expected["precision"], expected["recall"]), abs=1e-7)


def test_a_set_covers_itself():
    samples, _ = clusters(0)
    assert precision_recall(samples, samples) == (1, 1)


def test_sets_far_apart_share_nothing():
    samples, reference = clusters(0)
    assert precision_recall(samples + 100, reference) == (0, 0)


def test_the_border_belongs_to_the_ball():
    """On a line: the balls of 0, 1, 2, 3 have radii 3, 2, 2, 3, so that they reach from -3 to 6."""
    reference = np.arange(4.0)[:, None]
    samples = np.array([-4.0, -3.0, 6.0, 7.0])[:, None]
    precision, _ = precision_recall(samples, reference)
    assert precision == 0.5


def test_the_middle_of_two_modes_is_in_neither():
    """There, too, where what fills a block up would lie."""
    reference = np.concatenate([np.arange(-15.0, -10), np.arange(11.0, 16)])[:, None]
    assert precision_recall(np.zeros((5, 1)), reference) == (0, 0)


def test_one_mode_of_many_is_precise_and_recalls_little():
    rng = np.random.default_rng(0)
    modes = 50 * np.eye(8)
    reference = modes[np.arange(80) % 8] + rng.normal(size=(80, 8))
    samples = modes[np.zeros(60, int)] + 0.1 * rng.normal(size=(60, 8))
    precision, recall = precision_recall(samples, reference)
    assert precision == 1 and recall <= 1 / 8


def test_bad_features_are_refused():
    samples, reference = clusters(0)
    for other, message in (
        (reference[:3], "3 features are too few: give at least 4"),
        (reference[:, :5], r"\(83, 16\) and \(61, 5\)"),
        (np.full_like(reference, np.nan), "not finite"),
    ):
        with pytest.raises(InputError, match=message):
            precision_recall(samples, other)
