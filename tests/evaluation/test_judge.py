import numpy as np
import pytest

from dit_jax import serialization
from dit_jax.data import Digits
from dit_jax.evaluation.judge import SmallClassifier, stack
from dit_jax.metrics import Gaussian, frechet_distance


@pytest.fixture(scope="module")
def judge():
    return SmallClassifier(hidden=(48, 24), epochs=20).fit(Digits().open("train"))


@pytest.fixture(scope="module")
def held_out():
    return stack(Digits().open("test"))


def test_records_are_stacked(held_out):
    images, labels = held_out
    assert images.shape == (300, 8, 8, 1) and images.dtype == np.uint8
    assert labels.shape == (300,) and set(labels) == set(range(10))
    record = Digits().open("test")[17]
    np.testing.assert_array_equal(images[17], record["image"])
    assert labels[17] == record["label"]


def test_it_reads_digits_it_has_not_seen(judge, held_out):
    images, labels = held_out
    assert np.mean(judge.labels(images) == labels) >= 0.9


def test_features_are_the_last_hidden_layer(judge, held_out):
    images, labels = held_out
    features = judge.features(images)
    assert features.shape == (300, 24) and features.dtype == np.float64
    assert (features >= 0).all() and features.std() > 0
    network = judge._network
    logits = features @ network.coefs_[-1] + network.intercepts_[-1]
    np.testing.assert_array_equal(logits.argmax(axis=1), judge.labels(images))


def test_its_distance_tells_digits_from_noise(judge, held_out):
    images, _ = held_out
    reference = Gaussian.of(judge.features(stack(Digits().open("train"))[0]))
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    near, far = (Gaussian.of(judge.features(x)) for x in (images, noise))
    assert frechet_distance(far, reference) > 10 * frechet_distance(near, reference)


def test_fitting_is_repeatable():
    records = Digits().open("train")
    images = stack(records)[0][:20]
    one, again = (SmallClassifier((8,), epochs=2).fit(records).features(images) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert one.shape == (20, 8)


def test_it_says_what_it_is(judge):
    assert "48-24 perceptron" in judge.description
    chosen = SmallClassifier((8, 4), epochs=3)
    assert serialization.from_json(serialization.to_json(chosen)) == chosen
