"""Statistics of latents: streamed, merged over processes, and used."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.encoding import write_statistics
from dit_jax.encoding.statistics import latent_moments
from dit_jax.errors import InputError
from dit_jax.latents import RAE
from dit_jax.weights import load_weights
from tests.parallel import pair
from tests.training import tiny
from tests.training.reconstruction import small

CONFIG = """
from dit_jax.data import ImageFolder
from dit_jax.diffusion import Euler, Flow, Sampling
from dit_jax.experiment import Experiment, RunFolder
from dit_jax.latents import RAE
from dit_jax.models import DiT
from tests.training.reconstruction import small

experiment = Experiment(
    model=DiT(patch=1, hidden=32, depth=1, heads=2, num_classes=0, learn_sigma=False),
    process=Flow(),
    data=ImageFolder({images!r}, size=24),
    latents=RAE(small.ENCODER, {encoder!r}, small.DECODER),
    sampling=Sampling(Euler(steps=2)),
    run=RunFolder("unset"),
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rae")
    small.save(path / "encoder", small.ENCODER)
    small.save_images(path / "images")
    config = CONFIG.format(images=str(path / "images"), encoder=str(path / "encoder"))
    (path / "config.py").write_text(config)
    for number, image in enumerate(sorted((path / "images").glob("t*/*"))):
        labelled = image.parent / f"class_{number % 2}" / image.name
        labelled.parent.mkdir(exist_ok=True)
        image.rename(labelled)
    return path


@pytest.fixture(scope="module")
def rae(folder):
    return RAE(small.ENCODER, str(folder / "encoder"), small.DECODER)


@pytest.fixture(scope="module")
def images(folder):
    records = small.experiment(folder, folder).data.open("train")
    return np.stack([records[i]["image"] for i in range(len(records))])


@pytest.fixture(scope="module")
def measured(folder):
    """What two processes wrote, and what they printed."""
    config, out = str(folder / "config.py"), str(folder / "two")
    return pair.run_module("dit_jax", "latent-stats", config, out, "--batch-size", "3")


def test_two_processes_find_what_one_pass_finds(folder, rae, images, measured):
    assert "40 images, deviation" in measured[0]
    tokens = np.asarray(rae.store(rae.load(), jnp.asarray(images)), np.float64)
    found = load_weights(str(folder / "two"), None)
    np.testing.assert_allclose(found["mean"], tokens.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["variance"], tokens.var(axis=0), rtol=1e-6, atol=1e-6)


def test_latents_are_normalised_and_come_back(folder, rae, images, measured):
    normal = RAE(small.ENCODER, rae.encoder_weights, small.DECODER, statistics=str(folder / "two"))
    params = normal.load()
    latents = np.asarray(normal.store(params, jnp.asarray(images)))
    np.testing.assert_allclose(latents.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std(axis=0), 1, atol=1e-2)  # 1e-5 is added to variances.
    back = normal.normalization.apply({"params": params["statistics"]}, latents, True)
    tokens = rae.store({"encoder": params["encoder"]}, jnp.asarray(images))
    np.testing.assert_allclose(back, tokens, atol=1e-5)


def test_statistics_of_another_grid_are_refused(folder, rae, images, measured):
    normal = RAE(small.ENCODER, rae.encoder_weights, small.DECODER, statistics=str(folder / "two"))
    with pytest.raises(InputError, match=r"not of shape \(2, 2, 32\): make them"):
        normal.encode(normal.load(), jax.random.key(0), jnp.asarray(images[:, :16, :16]))


def test_batches_make_no_difference(rae, folder):
    source = small.experiment(folder, folder).data
    one, other = (latent_moments(rae, source, "test", batch_size=size) for size in (1, 2))
    assert one.count == other.count == 12
    np.testing.assert_allclose(one.variance, other.variance, rtol=1e-5)


def test_statistics_are_written_where_an_autoencoder_reads_them(rae, folder):
    source, out = small.experiment(folder, folder).data, str(folder / "of_test")
    found = write_statistics(rae, source, out, "test")
    read = dataclasses.replace(rae, statistics=out).load()["statistics"]
    np.testing.assert_array_equal(read["mean"], found.mean.astype(np.float32))
    np.testing.assert_array_equal(read["variance"], found.variance.astype(np.float32))
    with pytest.raises(InputError, match="holds weights already"):
        write_statistics(rae, source, out, "test")


def test_what_needs_no_statistics_is_refused(folder):
    config = tiny.write_config(folder)
    found = subprocess.run(
        [sys.executable, "-m", "dit_jax", "latent-stats", str(config), str(folder / "none")],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert "latents of Pixels: give a configuration with an RAE" in found.stderr
    assert not (folder / "none").exists()
