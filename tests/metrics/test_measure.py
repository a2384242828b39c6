"""Measures of files by name: what they are of, who shares the work, and what is refused."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.metrics import (
    Gaussian,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from dit_jax.metrics.features import FEATURES, find_features
from dit_jax.metrics.images import ImageFile
from dit_jax.metrics.measure import Measurement, check_names, possible_names
from tests.metrics import measure_program
from tests.metrics.small_space import Small
from tests.parallel import pair
from tests.training import tiny

SPACE = Small()


def images(seed, count, low=0):
    return np.random.default_rng(seed).integers(low, 256, (count, 4, 4, 3), np.uint8)


SETS = {"samples": images(0, 41), "reference": images(1, 29, low=60)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets")
    for name, array in SETS.items():
        np.savez(path / f"{name}.npz", array)
    return path


@pytest.fixture(scope="module")
def features():
    return {name: jax.jit(SPACE)(SPACE.load(), array) for name, array in SETS.items()}


def measured(folder, *names, reference="reference.npz", **options):
    files = [ImageFile.open(str(folder / name)) for name in ("samples.npz", reference)]
    return Measurement(names, SPACE, files[1], **options)(files[0])


def test_each_measure_is_of_its_features(folder, features):
    ours, real = features["samples"], features["reference"]
    found = measured(folder, "fid", "sfid", "is", "pr", batch_size=2)
    fid, sfid = (
        frechet_distance(*(Gaussian.of(np.asarray(x[kind])) for x in (ours, real)))
        for kind in ("pool", "spatial")
    )
    pools = [np.asarray(x["pool"]) for x in (ours, real)]
    expected = {"fid": fid, "sfid": sfid}
    score = inception_score(np.asarray(ours["logits"]))
    expected |= zip(("inception_score", "inception_score_deviation"), score)
    expected |= zip(("precision", "recall"), precision_recall(*pools))
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_kernel_distance_wants_a_thousand_images(tmp_path):
    sets = {"samples": images(2, 1001), "reference": images(3, 1002, low=60)}
    for name, array in sets.items():
        np.savez(tmp_path / f"{name}.npz", array)
    found = measured(tmp_path, "kid")
    pools = [np.asarray(jax.jit(SPACE)(SPACE.load(), x)["pool"]) for x in sets.values()]
    expected = dict(zip(("kid", "kid_deviation"), kernel_distance(*pools)))
    assert found == pytest.approx(expected, rel=1e-4)
    few = {"samples": sets["samples"][:10], "reference": sets["reference"]}
    np.savez(tmp_path / "samples.npz", few["samples"])
    with pytest.raises(InputError, match="10 images are too few for 'kid': it wants 1000"):
        measured(tmp_path, "kid")


def test_a_set_has_no_distance_to_itself(folder):
    found = measured(folder, "fid", "sfid", "pr", reference="samples.npz")
    expected = {"fid": 0, "sfid": 0, "precision": 1, "recall": 1}
    assert found == pytest.approx(expected, abs=1e-6)


def test_order_and_batches_make_no_difference(folder, tmp_path):
    np.savez(tmp_path / "samples.npz", SETS["samples"][::-1])
    np.savez(tmp_path / "reference.npz", SETS["reference"])
    names = "fid", "sfid", "pr"
    found, other = measured(folder, *names, batch_size=1), measured(tmp_path, *names, batch_size=4)
    assert found == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_grey_images_are_shown_as_rgb(tmp_path):
    grey = {name: array[..., :1] for name, array in SETS.items()}
    for name, array in grey.items():
        np.savez(tmp_path / f"{name}.npz", array)
    found = measured(tmp_path, "fid", "pr")
    for name, array in grey.items():
        np.savez(tmp_path / f"{name}.npz", array.repeat(3, axis=-1))
    assert found == pytest.approx(measured(tmp_path, "fid", "pr"), rel=1e-6)


def test_statistics_of_a_reference_are_taken_as_they_are(folder, tmp_path):
    """Even where they are not those of its images, as the evaluator does."""
    statistics = {"mu": np.zeros((1, 6)), "sigma": np.eye(6)}
    np.savez(tmp_path / "both.npz", SETS["reference"], **statistics)
    np.savez(tmp_path / "alone.npz", **statistics)
    np.savez(tmp_path / "samples.npz", SETS["samples"])
    found = measured(tmp_path, "fid", "sfid", reference="both.npz")
    own = measured(folder, "fid", "sfid")
    assert found["fid"] != pytest.approx(own["fid"], rel=0.1) and found["sfid"] == own["sfid"]
    assert measured(tmp_path, "fid", reference="alone.npz")["fid"] == found["fid"]
    with pytest.raises(InputError, match="holds statistics, and 'pr' needs images"):
        measured(tmp_path, "pr", reference="alone.npz")


def test_two_processes_measure_what_one_does(folder):
    pair.run_module("tests.metrics.measure_program", str(folder))
    told = [json.loads((folder / f"{index}.json").read_text()) for index in (0, 1)]
    assert told[0] == told[1]
    assert told[0] == pytest.approx(measured(folder, *measure_program.NAMES), rel=1e-5, abs=1e-6)


def test_one_image_and_statistics_alone_are_no_samples(folder, tmp_path):
    np.savez(tmp_path / "reference.npz", SETS["reference"])
    np.savez(tmp_path / "samples.npz", SETS["samples"][:1])
    with pytest.raises(InputError, match="1 images are too few for 'fid'"):
        measured(tmp_path, "fid")
    np.savez(tmp_path / "samples.npz", mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(InputError, match="holds statistics and no images: give images first"):
        measured(tmp_path, "fid")


def test_a_reference_in_zeros_and_ones_is_refused_and_black_samples_are_bad_ones(tmp_path):
    """What a model draws is measured whatever it is; a file that is given may be a mistake."""
    np.savez(tmp_path / "samples.npz", np.zeros_like(SETS["samples"]))
    np.savez(tmp_path / "reference.npz", SETS["reference"])
    assert measured(tmp_path, "fid")["fid"] > 0.1
    np.savez(tmp_path / "reference.npz", SETS["reference"] // 255)
    with pytest.raises(InputError, match="is above 1"):
        measured(tmp_path, "fid")


def test_what_will_not_compare_is_known_before_there_are_samples(folder):
    measurement = Measurement(("fid",), SPACE, ImageFile.open(str(folder / "reference.npz")))
    measurement.check((2, 4, 4, 3))
    with pytest.raises(InputError, match="of 8x8, and those of the reference"):
        measurement.check((2, 8, 8, 3))
    with pytest.raises(InputError, match="too few"):
        measurement.check((1, 4, 4, 3))


def test_unknown_measures_and_missing_references_are_refused():
    with pytest.raises(InputError, match="no metric 'fed' of Small's features: choose from fid, "):
        check_names(("fid", "fed"), SPACE, "reference.npz")
    with pytest.raises(InputError, match="no metric 'fid' of DINOv2's features: choose from fd, "):
        check_names(("fid",), FEATURES["dinov2"], "reference.npz")
    with pytest.raises(InputError, match="'fid' compares with a reference and there is none"):
        check_names(("is", "fid"), SPACE, None)
    check_names(("is",), SPACE, None)


def test_all_that_files_allow_is_measured_by_default(folder, tmp_path):
    samples, reference = (ImageFile.open(str(folder / f"{name}.npz")) for name in SETS)
    np.savez(tmp_path / "alone.npz", mu=np.zeros(6), sigma=np.eye(6))
    alone = ImageFile.open(str(tmp_path / "alone.npz"))
    assert possible_names(SPACE, samples, reference) == ("fid", "sfid", "is", "pr")
    assert possible_names(SPACE, samples, alone) == ("fid", "is")
    assert possible_names(SPACE, samples, None) == ("is",)
    assert possible_names(FEATURES["dinov2"], samples, None) == ()


def test_features_by_name():
    assert find_features("inception-clean").resize == "clean"
    assert find_features("inception", "elsewhere").weights == "elsewhere"


def test_the_command_says_what_is_missing(folder, tmp_path):
    command = [sys.executable, "-m", "dit_jax", "metrics", "samples.npz", "reference.npz"]
    found = subprocess.run(
        [*command, "--weights", str(tmp_path / "none")],
        cwd=folder,
        env=tiny.os.environ | {"PYTHONPATH": str(tiny.ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2 and "holds no weights: get pt_inception" in found.stderr
    assert found.stderr.count("\n") == 1
