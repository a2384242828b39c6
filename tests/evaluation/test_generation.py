"""Samples on disk: gone on with, and the same on any number of devices."""

import json

import jax
import numpy as np
import pytest

import dit_jax
from dit_jax.evaluation import generation
from dit_jax.metrics.images import ImageFile
from dit_jax.parallel.mesh import Parallel
from tests.evaluation.tiny_run import tiny_run

LABELS = (np.arange(21) % 10).astype(np.int32)
PROTOCOL = {"samples": len(LABELS), "seed": 3, "guidance": None}


class Stopped(Exception):
    """As if the process had been killed."""


def stopped(*_):
    raise Stopped


@pytest.fixture(scope="module")
def run():
    return tiny_run()


@pytest.fixture(scope="module")
def expected(run):
    return dit_jax.sample(run, LABELS, seed=3, batch_size=8)


@pytest.fixture
def drawn(monkeypatch):
    """The sizes of the batches that are drawn; the entry `stop` is where to break off."""
    sizes, stop, real = [], [None], generation.sample_batches

    def counting(*args, **kwargs):
        for batch in real(*args, **kwargs):
            if len(sizes) == stop[0]:
                raise Stopped
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(generation, "sample_batches", counting)
    return sizes, stop


def generate(run, folder, protocol=PROTOCOL, batch_size=8, **options):
    path = generation.generate(
        run, LABELS, folder, protocol, batch_size=batch_size, seed=protocol["seed"], **options
    )
    return ImageFile.open(str(path))


def test_samples_are_in_adms_format_and_nothing_else_is_left(run, expected, tmp_path):
    images = generate(run, tmp_path / "new" / "folder")
    np.testing.assert_array_equal(images.read(), expected)
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {"samples.npz", "samples.json"}
    assert json.loads((tmp_path / "new" / "folder" / "samples.json").read_text()) == PROTOCOL


@pytest.mark.parametrize("batch_size", [8, 5])
def test_what_was_stopped_is_gone_on_with(run, expected, tmp_path, drawn, batch_size):
    sizes, stop = drawn
    stop[0] = 1
    with pytest.raises(Stopped):
        generate(run, tmp_path)
    assert not (tmp_path / "samples.npz").exists()
    stop[0] = None
    images = generate(run, tmp_path, batch_size=batch_size)
    assert sum(sizes) == len(LABELS)
    if batch_size == 8:
        np.testing.assert_array_equal(images.read(), expected)
    else:  # Programs of other shapes round otherwise, by a level of 256 at most.
        np.testing.assert_allclose(images.read().astype(int), expected.astype(int), atol=1)


def test_what_is_there_is_not_drawn_again(run, expected, tmp_path, drawn):
    generate(run, tmp_path)
    np.testing.assert_array_equal(generate(run, tmp_path).read(), expected)
    assert sum(drawn[0]) == len(LABELS)


def test_samples_of_another_protocol_are_drawn_over(run, expected, tmp_path, drawn):
    generate(run, tmp_path, PROTOCOL | {"seed": 4})
    np.testing.assert_array_equal(generate(run, tmp_path).read(), expected)
    assert sum(drawn[0]) == 2 * len(LABELS)


def test_a_part_of_another_protocol_is_not_gone_on_with(run, expected, tmp_path, drawn):
    drawn[1][0] = 2
    with pytest.raises(Stopped):
        generate(run, tmp_path, PROTOCOL | {"seed": 4})
    drawn[1][0] = None
    np.testing.assert_array_equal(generate(run, tmp_path).read(), expected)


def test_protocols_do_not_mix_when_all_of_them_are_stopped(run, expected, tmp_path, drawn):
    """Of A a part; then B, in one batch, stopped at its end; then A again."""
    sizes, stop = drawn
    stop[0] = 1
    with pytest.raises(Stopped):
        generate(run, tmp_path)
    stop[0] = 2  # All of B is drawn, and nothing finished.
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(generation._Files, "finish", stopped)
        generate(run, tmp_path, PROTOCOL | {"seed": 4}, batch_size=24)
    stop[0] = None
    np.testing.assert_array_equal(generate(run, tmp_path).read(), expected)


def test_a_part_that_was_finished_but_for_its_name_is_not_drawn_again(
    run, expected, tmp_path, drawn
):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(generation._Files, "finish", stopped)
        generate(run, tmp_path)
    np.testing.assert_array_equal(generate(run, tmp_path).read(), expected)
    assert sum(drawn[0]) == len(LABELS)


@pytest.mark.parametrize("damage", ["torn", "head", "record"])
def test_damaged_files_are_drawn_anew_or_cut(run, expected, tmp_path, drawn, damage):
    drawn[1][0] = 2
    with pytest.raises(Stopped):
        generate(run, tmp_path)
    drawn[1][0] = None
    part, record = tmp_path / "samples.part", tmp_path / "samples.json"
    if damage == "torn":
        part.write_bytes(part.read_bytes()[:-3])
    elif damage == "head":
        part.write_bytes(b"no head")
    else:
        record.write_text("")
    np.testing.assert_array_equal(generate(run, tmp_path).read(), expected)
    assert sum(drawn[0]) == {"torn": 22, "head": 37, "record": 37}[damage]


def test_any_number_of_devices_draws_the_same(run, expected, tmp_path):
    for count in (1, 2):
        mesh = Parallel().mesh(jax.devices()[:count])
        images = generate(run, tmp_path / str(count), mesh=mesh).read().astype(int)
        np.testing.assert_allclose(images, expected.astype(int), atol=1)
