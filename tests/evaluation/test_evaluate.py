"""Generate, save and measure, on a model that was never trained."""

import dataclasses
import json
import zipfile

import jax
import numpy as np
import pytest
import rich.console
from PIL import Image

import dit_jax
from dit_jax.diffusion import Autoguidance, ClassifierFree, Euler, Sampling
from dit_jax.errors import InputError
from dit_jax.evaluation.evaluate import evaluate
from dit_jax.evaluation.judge import SmallClassifier
from dit_jax.evaluation.options import Evaluation
from dit_jax.images import grid
from dit_jax.latents import VAE, Cached
from dit_jax.metrics.features import Inception
from dit_jax.metrics.images import ImageFile
from dit_jax.models import DiT
from tests.evaluation import evaluate_program
from tests.evaluation.tiny_run import STEPS, tiny_run
from tests.metrics.small_space import Small
from tests.parallel import pair

SAMPLES = 25
JUDGE = SmallClassifier(hidden=(16, 6), epochs=3)
OPTIONS = Evaluation(samples=SAMPLES, batch_size=8, seed=4, judge=JUDGE)


@pytest.fixture(scope="module")
def run():
    return tiny_run()


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "new" / "evaluation"
    return folder, evaluate(run, folder, OPTIONS)


@pytest.fixture(scope="module")
def images(evaluated):
    with np.load(evaluated[0] / "samples.npz") as archive:
        assert archive.files == ["arr_0"]
        return archive["arr_0"]


def test_it_leaves_four_files_and_no_scratch(evaluated):
    names = {path.name for path in evaluated[0].iterdir()}
    assert names == {"samples.npz", "samples.json", "grid.png", "metrics.json"}


def test_samples_are_in_adms_format(evaluated, images):
    assert images.shape == (SAMPLES, 8, 8, 1) and images.dtype == np.uint8
    assert images.flags.c_contiguous
    with zipfile.ZipFile(evaluated[0] / "samples.npz") as archive:
        assert archive.namelist() == ["arr_0.npy"] and archive.testzip() is None


def test_classes_take_turns(run, images):
    """Row i is what `sample` draws for number i and label i mod 10."""
    labels = np.arange(SAMPLES) % 10
    expected = dit_jax.sample(run, labels, seed=4, batch_size=8)
    np.testing.assert_array_equal(images, expected)
    assert set(np.bincount(labels)) == {2, 3}
    assert (dit_jax.sample(run, (labels + 1) % 10, seed=4, batch_size=8) != images).any()


def test_the_grid_has_a_column_a_class(evaluated, images):
    with Image.open(evaluated[0] / "grid.png") as picture:
        pixels = np.asarray(picture)
    np.testing.assert_array_equal(pixels[::8, ::8], grid(images, 10)[..., 0])


def test_metrics_come_with_their_protocol(evaluated):
    folder, report = evaluated
    saved = json.loads((folder / "metrics.json").read_text())
    assert saved["metrics"] == report.metrics
    assert saved["protocol"].keys() == report.protocol.keys()
    expected = {
        "step": 7,
        "samples": SAMPLES,
        "labels": "balanced, in turn",
        "seed": 4,
        "solver": repr(Euler(steps=STEPS)),
        "guidance": repr(ClassifierFree(2.0)),
        "compute dtype": "float32",
        "uint8": "truncate(127.5 x + 128)",
        "batch size": 8,
        "judge": f"{JUDGE!r}, against the training split",
        "features": None,
        "reference": None,
        "backend": "cpu x 8",
    }
    assert {name: saved["protocol"][name] for name in expected} == expected
    assert saved["protocol"]["parameters"].startswith("EMA 0.9, ")
    assert saved["protocol"]["decoder"].startswith("Pixels, ")


def test_real_images_are_measured_beside_the_samples(evaluated):
    metrics = evaluated[1].metrics
    names = {"frechet_distance", "label_agreement"}
    assert metrics.keys() == names | {f"real_test_{name}" for name in names}
    assert all(np.isfinite(list(metrics.values())))
    # The samples are noise: real digits look more like digits, and are read better.
    assert metrics["frechet_distance"] > 2 * metrics["real_test_frechet_distance"]
    assert metrics["real_test_label_agreement"] > metrics["label_agreement"]


def test_the_table_shows_all(evaluated):
    console = rich.console.Console(width=200, record=True)
    with console.capture() as capture:
        console.print(evaluated[1].table())
    text = capture.get()
    assert f"{evaluated[1].metrics['frechet_distance']:.4f}" in text
    assert "balanced, in turn" in text and "ClassifierFree" in text


def test_a_guidance_of_ones_own_is_used_and_told(run, tmp_path):
    options = Evaluation(samples=8, batch_size=8)
    report = evaluate(run, tmp_path, options, guidance=3.5)
    assert report.protocol["guidance"] == repr(ClassifierFree(3.5)) and report.metrics == {}
    assert report.protocol["reference"] is None
    with np.load(tmp_path / "samples.npz") as archive:
        np.testing.assert_array_equal(
            archive["arr_0"], dit_jax.sample(run, np.arange(8), guidance=3.5)
        )


def test_a_guidance_of_1_is_none_and_not_the_runs_own(run, tmp_path):
    report = evaluate(run, tmp_path, Evaluation(samples=8, batch_size=8), guidance=1.0)
    assert report.protocol["guidance"] == "None"
    plain = dit_jax.sample(run, np.arange(8), guidance=1.0)
    assert (plain != dit_jax.sample(run, np.arange(8))).any()
    with np.load(tmp_path / "samples.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"], plain)


def test_again_over_an_earlier_evaluation(run, tmp_path):
    options = Evaluation(samples=10, batch_size=8)
    evaluate(run, tmp_path, options)
    evaluate(run, tmp_path, dataclasses.replace(options, samples=3))
    with np.load(tmp_path / "samples.npz") as archive:
        assert len(archive["arr_0"]) == 3
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"]["samples"] == 3


def test_an_unconditional_model_is_measured_without_labels(tmp_path):
    model = DiT(patch=4, hidden=16, depth=2, heads=2, num_classes=0, learn_sigma=False)
    run = tiny_run(model=model, sampling=Sampling(Euler(steps=STEPS)))
    report = evaluate(run, tmp_path, Evaluation(samples=8, batch_size=8, judge=JUDGE))
    assert report.metrics.keys() == {"frechet_distance", "real_test_frechet_distance"}
    assert report.protocol["labels"] == "none" and report.protocol["guidance"] == "None"


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": -1}, {"batch_size": 0}])
def test_bad_numbers_write_nothing(run, tmp_path, options):
    folder = tmp_path / "evaluation"
    with pytest.raises(InputError, match="must be at least 1"):
        evaluate(run, folder, dataclasses.replace(OPTIONS, **options))
    assert not folder.exists()


def test_guidance_that_does_not_fit_writes_nothing(run, tmp_path):
    with pytest.raises(InputError, match="weak run"):
        evaluate(run, tmp_path / "evaluation", OPTIONS, Autoguidance())
    assert not (tmp_path / "evaluation").exists()


def test_latents_without_decoder_write_nothing(run, tmp_path):
    experiment = dataclasses.replace(run.experiment, latents=Cached(VAE()))
    with pytest.raises(InputError, match="decode"):
        evaluate(dataclasses.replace(run, experiment=experiment), tmp_path / "new", OPTIONS)
    assert not list(tmp_path.rglob("*.np*"))


def test_one_sample_is_too_few_to_judge(run, tmp_path):
    """One sample has no covariance; without a judge it is fine."""
    one = Evaluation(samples=1, batch_size=8)
    assert evaluate(run, tmp_path, one).metrics == {}
    with pytest.raises(InputError, match="sample"):
        evaluate(run, tmp_path, dataclasses.replace(one, judge=JUDGE))


def test_samples_are_measured_by_name(run, tmp_path):
    reference = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "reference.npz", reference)
    options = {"metrics": ("fid", "pr"), "reference": str(tmp_path / "reference.npz")}
    options = Evaluation(samples=10, batch_size=8, labels="random", features=Small(), **options)
    report = evaluate(run, tmp_path / "evaluation", options)
    assert report.metrics.keys() == {"fid", "precision", "recall"}
    digest = ImageFile.open(options.reference).checksum()
    assert report.protocol["reference"] == f"{options.reference}, SHA-256 {digest}"
    assert report.protocol["features"].startswith(Small().description)
    assert report.protocol["labels"] == "drawn at random"


def test_what_cannot_be_measured_is_known_before_anything_is_drawn(run, tmp_path):
    np.savez(tmp_path / "other.npz", np.full((4, 16, 16, 3), 9, np.uint8))
    options = {"metrics": ("fid",), "samples": 10, "reference": str(tmp_path / "other.npz")}
    folder = tmp_path / "evaluation"
    with pytest.raises(InputError, match="of 8x8, and those of the reference"):
        evaluate(run, folder, Evaluation(features=Small(), **options))
    with pytest.raises(InputError, match="holds no weights"):
        evaluate(run, folder, Evaluation(features=Inception(str(tmp_path / "none")), **options))
    assert not folder.exists()


def test_samples_of_other_parameters_are_other_samples(run, tmp_path):
    """Though run, step and all settings are the same."""
    options = Evaluation(samples=8, batch_size=8)
    evaluate(run, tmp_path, options)
    params = jax.tree.map(lambda leaf: 1.1 * leaf, run.params)
    evaluate(dataclasses.replace(run, params=params), tmp_path, options)
    with np.load(tmp_path / "samples.npz") as archive:
        found = archive["arr_0"]
    assert (found != dit_jax.sample(run, np.arange(8))).any()


def test_two_processes_generate_and_measure_what_one_does(run, tmp_path):
    reference = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "reference.npz", reference)
    pair.run_module("tests.evaluation.evaluate_program", str(tmp_path))
    told = [json.loads((tmp_path / f"{index}.json").read_text()) for index in (0, 1)]
    assert told[0] == told[1]
    options = Evaluation(**evaluate_program.OPTIONS, reference=str(tmp_path / "reference.npz"))
    one = evaluate(run, tmp_path / "one", options)
    images = [np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("one", "two")]
    # Programs for other numbers of devices may round otherwise, by a level of 256.
    np.testing.assert_allclose(*(x.astype(int) for x in images), atol=1)
    assert told[0] == pytest.approx(one.metrics, rel=1e-3, abs=1e-3)
