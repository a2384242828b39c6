"""Caches hold what encoding gives, whoever writes them and however often that is broken off."""

import dataclasses
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.data import ArrayRecords, Digits, batches
from dit_jax.data.array_record import MIRRORED, shard_name
from dit_jax.diffusion import Euler
from dit_jax.encoding import Cache, caching, write_cache
from dit_jax.errors import InputError
from dit_jax.latents import Cached, Pixels
from dit_jax.sampling import sample
from dit_jax.training.trainer import Trainer
from tests.encoding import small
from tests.parallel import pair
from tests.training import tiny

pytest.importorskip("array_record")

COUNT = 1497
ARGS = ("--shard-size", "50", "--batch-size", "4", "--data.flip")


@dataclasses.dataclass(frozen=True)
class Place:
    """The autoencoder, and an undisturbed cache of it that this process has written."""

    weights: str
    cache: Cache
    out: pathlib.Path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caching")
    weights = small.save_weights(folder / "vae")
    cache = Cache(small.space(weights), Digits(flip=True), shard_size=50)
    written = write_cache(cache, str(folder / "out"), batch_size=4)
    assert (written.records, written.kept) == (COUNT, 0)
    return Place(weights, cache, folder / "out")


@functools.cache
def encoder(space):
    return space.load(), jax.jit(space.store)


def stored(place: Place, images: np.ndarray) -> np.ndarray:
    """What the space stores of at most 32 images: one shape, to be compiled once."""
    params, store = encoder(place.cache.latents)
    padded = np.pad(images, [(0, 32 - len(images)), (0, 0), (0, 0), (0, 0)])
    return np.asarray(store(params, padded))[: len(images)]


def files(out: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def start(place: Place, folder: pathlib.Path, *args: str, env=()) -> subprocess.Popen:
    """Starts the command that writes `place.cache` to folder/out, on two devices."""
    config = small.write_config(folder, place.weights)
    with open(folder / "printed", "a") as printed:
        return subprocess.Popen(
            [sys.executable, "-m", "dit_jax", "cache-latents", config, folder / "out", *args],
            cwd=tiny.ROOT,
            env=os.environ | pair.devices(2) | {"PYTHONPATH": str(tiny.ROOT)} | dict(env),
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def test_records_are_the_encoded_images_in_their_order(place):
    images, records = Digits().open(), ArrayRecords(str(place.out), classes=10).open()
    assert len(records) == len(images) == COUNT
    assert [records[i]["label"] for i in range(COUNT)] == list(images.labels)
    chosen = [0, 49, 50, 1450, 1496]
    for i, expected in zip(chosen, stored(place, images.images[chosen])):
        np.testing.assert_allclose(records[i]["image"], expected, atol=1e-5)


def test_mirrored_records_are_those_of_mirrored_images(place):
    images = Digits().open()
    records = ArrayRecords(str(place.out), classes=10, flip=True).open()
    for i, expected in zip((60, 61), stored(place, images.images[60:62, :, ::-1])):
        found = records.mirrored(i)
        assert found["label"] == images.labels[i]
        np.testing.assert_allclose(found["image"], expected, atol=1e-5)
        flipped = records[i]["image"][:, ::-1]
        assert np.abs(flipped - found["image"]).max() > 1e-3


def experiment(folder: pathlib.Path, **options):
    options = {"training__batch_size": 16, "training__steps": 3, "model__depth": 1} | options
    return tiny.experiment(folder, **options)


def losses_and_run(experiment):
    trainer = Trainer(experiment)
    state, losses = trainer.state(), []
    for batch in trainer.batches(0):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, trainer.run(len(losses), state)


def test_training_on_a_cache_is_training_on_its_images(place, tmp_path):
    """The same records, mirrored at the same positions, drawn with the same keys."""
    images = experiment(tmp_path / "images", data=Digits(flip=True), latents=place.cache.latents)
    cached = experiment(
        tmp_path / "cached",
        data=ArrayRecords(str(place.out), classes=10, flip=True),
        latents=Cached(small.space(None)),  # The autoencoder is not there, and is not missed.
    )
    (theirs, _), (ours, run) = losses_and_run(images), losses_and_run(cached)
    assert len(ours) == 3
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    with pytest.raises(InputError, match="VAE.weights is not set"):
        sample(run, [3], solver=Euler(steps=1))
    latents = Cached(place.cache.latents)
    run = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, latents=latents))
    drawn = sample(run, [3], solver=Euler(steps=1))
    assert drawn.shape == (1, 8, 8, 1) and drawn.dtype == np.uint8


def test_a_decoder_for_grids_is_missed_before_training(place, tmp_path):
    cached = experiment(
        tmp_path / "run",
        data=ArrayRecords(str(place.out), classes=10),
        latents=Cached(small.space("nowhere")),
        run__sample_every=3,
    )
    with pytest.raises(InputError, match="'nowhere' holds no weights"):
        Trainer(cached)
    assert not (tmp_path / "run").exists()


def test_the_same_positions_are_mirrored_as_of_images(place):
    options = {"batch_size": 32, "start": 0, "steps": 1, "seed": 3, "num_classes": 10}
    images = next(batches(Digits().open(), flip=True, **options))
    source = ArrayRecords(str(place.out), classes=10, flip=True)
    latents = next(batches(source.open(), flip=True, **options))
    np.testing.assert_allclose(latents["image"], stored(place, images["image"]), atol=1e-5)


def test_a_killed_writer_goes_on_where_it_was(place, tmp_path):
    process = start(place, tmp_path, *ARGS)
    train, deadline = tmp_path / "out" / "train", time.monotonic() + 120
    while len(list(train.glob("part-*.array_record"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline, "it ended early"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in train.glob("part-*.array_record")}
    assert 3 <= len(before) < 30
    with pytest.raises(InputError, match="train lacks .* files, of which part-000.* is the first"):
        ArrayRecords(str(tmp_path / "out")).open()
    written = write_cache(place.cache, str(tmp_path / "out"), batch_size=4)
    assert written.kept == 50 * len(before) and written.kept + written.records == COUNT
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files(tmp_path / "out") == files(place.out)


def test_two_processes_write_what_one_writes(place, tmp_path):
    port = pair.free_port()
    processes = [start(place, tmp_path, *ARGS, env=pair.by_hand(port, i)) for i in (0, 1)]
    try:
        statuses = [process.wait(timeout=120) for process in processes]
    finally:
        pair.end(processes)
    printed = (tmp_path / "printed").read_text()
    assert statuses == [0, 0], printed
    assert printed.count("1,497 records written (") == 1
    assert files(tmp_path / "out") == files(place.out)


def test_a_damaged_file_is_written_again_and_no_other(place, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(place.out, out)
    damaged = out / "train" / MIRRORED / shard_name(7, 30)
    damaged.write_bytes(damaged.read_bytes()[:1000])
    written = write_cache(place.cache, str(out), batch_size=4)
    assert (written.records, written.kept) == (50, COUNT - 50)
    assert files(out) == files(place.out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_and_both_splits(place, tmp_path, dtype):
    cache = dataclasses.replace(place.cache, split="test", dtype=dtype, shard_size=256)
    write_cache(cache, str(tmp_path), batch_size=4)
    shutil.copytree(place.out / "train", tmp_path / "train")
    source = ArrayRecords(str(tmp_path), classes=10, flip=True)
    records = source.open("test")  # A test image is never mirrored.
    assert (len(source.open("train")), len(records)) == (COUNT, 300)
    assert not (tmp_path / "test" / MIRRORED).exists()
    assert records[299]["image"].dtype == jnp.dtype(dtype)
    expected = stored(place, Digits().open("test").images[299:])[0]
    np.testing.assert_allclose(records[299]["image"].astype(np.float32), expected, atol=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "dtype: 'float32' -> 'float16'"),
        ({"shard_size": 51}, "shard_size: 50 -> 51"),
        ({"source": Digits()}, "source.flip: True -> False"),
        ({"latents": small.space("elsewhere")}, "elsewhere"),
    ],
)
def test_another_cache_is_refused_and_the_old_one_stays(place, change, message):
    before = files(place.out)
    cache = dataclasses.replace(place.cache, **change)
    with pytest.raises(InputError, match=message):
        write_cache(cache, str(place.out), batch_size=4)
    assert files(place.out) == before


def test_a_folder_of_other_files_is_refused(place, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "letter.txt").touch()
    with pytest.raises(InputError, match="holds files that are no cache"):
        write_cache(place.cache, str(tmp_path), batch_size=4)


def test_numbers_that_do_not_fit_the_dtype_are_refused(place, tmp_path):
    weights = small.save_weights(tmp_path / "vae", factor=1e4)
    cache = Cache(small.space(weights), Digits(), "test", "float16")
    with pytest.raises(InputError, match="latents float16 cannot hold: use --dtype float32"):
        write_cache(cache, str(tmp_path / "out"), batch_size=4)
    with pytest.raises(InputError, match="no ArrayRecord files"):
        ArrayRecords(str(tmp_path / "out" / "test")).open()


def test_bad_options_are_named(place):
    with pytest.raises(InputError, match="cached already: give one that encodes"):
        Cache(Cached(Pixels()), Digits())
    with pytest.raises(InputError, match="--shard-size 0: it must be at least 1"):
        Cache(Pixels(), Digits(), shard_size=0)
    with pytest.raises(InputError, match="--batch-size 0: it must be at least 1"):
        write_cache(place.cache, "unset", batch_size=0)


def test_the_command_says_what_is_there(place, tmp_path, capsys):
    config = str(small.write_config(tmp_path, place.weights))
    caching.main([config, str(place.out), *ARGS])
    assert f"all 1,497 records were there: {place.out}/train" in capsys.readouterr().out


def test_missing_weights_leave_nothing(tmp_path):
    config = str(small.write_config(tmp_path, "nowhere"))
    with pytest.raises(InputError, match="'nowhere' holds no weights"):
        caching.main([config, str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
