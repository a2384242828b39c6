"""An evaluation leaves samples, a grid, and numbers with their protocol."""

import json

import numpy as np
import pytest
from PIL import Image

from dit_jax.data import Digits
from dit_jax.errors import InputError
from dit_jax.evaluation.evaluate import evaluate
from dit_jax.evaluation.judge import SmallClassifier, stack
from dit_jax.evaluation.options import Evaluation
from tests.test_sampling import make_run


def test_samples_are_written_in_adms_format(tmp_path):
    options = Evaluation(samples=25, batch_size=10, judge=SmallClassifier(epochs=2))
    report = evaluate(make_run(), tmp_path, options)
    images = np.load(tmp_path / "samples.npz")["arr_0"]
    assert images.shape == (25, 8, 8, 1) and images.dtype == np.uint8
    assert Image.open(tmp_path / "grid.png").size[0] > 10 * 64
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved["metrics"] == report.metrics
    assert set(report.metrics) == {
        *("frechet_distance", "label_agreement"),
        *("real_test_frechet_distance", "real_test_label_agreement"),
    }
    wanted = {"solver", "guidance", "labels", "seed", "samples", "uint8", "compute dtype"}
    assert wanted <= saved["protocol"].keys()
    assert not (tmp_path / "samples.npy").exists()


def test_guidance_can_be_chosen_and_is_reported(tmp_path):
    run, options = make_run(), Evaluation(samples=4, batch_size=4)
    evaluate(run, tmp_path / "a", options)
    report = evaluate(run, tmp_path / "b", options, guidance=4.0)
    assert "scale=4.0" in report.protocol["guidance"]
    a, b = (np.load(tmp_path / x / "samples.npz")["arr_0"] for x in "ab")
    assert (a != b).any()


@pytest.mark.parametrize("change", [{"samples": 0}, {"samples": 5, "batch_size": 0}])
def test_nothing_to_generate_is_an_error(tmp_path, change):
    with pytest.raises(InputError, match="at least 1"):
        evaluate(make_run(), tmp_path / "x", Evaluation(**change))
    assert not (tmp_path / "x").exists()


def test_the_classifier_reads_real_digits_it_has_not_seen():
    judge = SmallClassifier().fit(Digits().open("train"))
    images, labels = stack(Digits().open("test"))
    assert np.mean(judge.labels(images) == labels) > 0.95
    assert judge.features(images).shape == (len(images), 64)
