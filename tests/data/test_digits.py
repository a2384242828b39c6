import numpy as np
import pytest

from dit_jax.data import Digits

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def test_every_sixth_digit_is_for_testing_and_all_are_delivered():
    train, test = Digits().open("train"), Digits().open("test")
    everything = sklearn_datasets.load_digits()
    assert (len(train), len(test)) == (1497, 300)
    assert [test[i]["label"] for i in range(300)] == everything.target[::6].tolist()
    kept = sorted(train[i]["image"].tobytes() for i in range(len(train)))
    kept = sorted(kept + [test[i]["image"].tobytes() for i in range(300)])
    assert kept == sorted(
        np.array([round(v * 255 / 16) for v in image.ravel()], np.uint8).tobytes()
        for image in everything.images
    )


def test_records_are_what_the_source_promises():
    source = Digits()
    record = source.open()[7]
    assert record["image"].shape == source.shape == (8, 8, 1)
    assert record["image"].dtype == np.uint8
    assert source.num_classes == 10


def test_both_splits_hold_every_class():
    for split in ("train", "test"):
        records = Digits().open(split)
        assert {records[i]["label"] for i in range(len(records))} == set(range(10))
