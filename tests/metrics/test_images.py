"""Image files in ADM's format: what is read, and what is refused."""

import hashlib
import pathlib
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.errors import InputError
from dit_jax.metrics.images import ImageFile, check_bytes, check_comparable

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), np.uint8)


def save(path, *arrays, compressed=False, **named):
    (np.savez_compressed if compressed else np.savez)(path, *arrays, **named)
    return str(path)


def read_bytes(path):
    return pathlib.Path(path).read_bytes()


@pytest.fixture(scope="module", params=[False, True], ids=["stored", "compressed"])
def file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "a.npz"
    return ImageFile.open(save(path, IMAGES, compressed=request.param))


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 7), stop=st.integers(0, 7), size=st.integers(1, 9))
def test_batches_are_the_rows_that_were_asked_for(file, start, stop, size):
    batches = list(file.batches(start, stop, size))
    assert all(0 < len(batch) <= size for batch in batches)
    rows = np.concatenate([IMAGES[:0], *batches])
    np.testing.assert_array_equal(rows, IMAGES[start : max(start, stop)])


def test_all_of_a_file_and_its_first_images(file):
    np.testing.assert_array_equal(file.read(), IMAGES)
    np.testing.assert_array_equal(file.read(2), IMAGES[:2])
    np.testing.assert_array_equal(file.read(100), IMAGES)


def test_a_file_is_named_by_its_checksum(file):
    assert file.checksum() == hashlib.sha256(read_bytes(file.path)).hexdigest()


def test_statistics_come_beside_images_or_alone(tmp_path):
    """As in ADM's references, whose labels and statistics lie beside `arr_0`."""
    statistics = {"mu": np.arange(3.0), "sigma": np.eye(3, dtype=np.float32)}
    both = ImageFile.open(save(tmp_path / "both.npz", IMAGES, np.arange(7), **statistics))
    alone = ImageFile.open(save(tmp_path / "alone.npz", **statistics))
    assert both.shape == IMAGES.shape and alone.shape is None
    np.testing.assert_array_equal(both.read(), IMAGES)
    for each in (both, alone):
        assert each.statistics.keys() == {"mu", "sigma"}
        assert each.statistics["sigma"].dtype == np.float64


BAD = {
    "floats": (IMAGES / 255.0, "holds float64 numbers.*quantise"),
    "integers": (IMAGES.astype(np.int32), "holds int32 numbers"),
    "channels first": (IMAGES.transpose(0, 3, 1, 2), "channels first: transpose"),
    "one without an axis": (IMAGES[0], r"has shape \(4, 6, 3\): images are"),
    "five channels": (np.zeros((3, 8, 8, 5), np.uint8), "5 channels"),
    "mixed sizes": (np.array([IMAGES[0], IMAGES[1, :2]], object), "mixed sizes"),
    "none": (IMAGES[:0], "holds no image"),
    "columns first": (np.asfortranarray(IMAGES), "Fortran's order"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_set_of_images_is_refused(tmp_path, name):
    array, message = BAD[name]
    path = save(tmp_path / "bad.npz", array)
    with pytest.raises(InputError, match=message):
        ImageFile.open(path)


def test_bytes_that_are_not_spread_out_are_refused(tmp_path):
    path = save(tmp_path / "bad.npz", (IMAGES / 255).astype(np.uint8))
    with pytest.raises(InputError, match="above 1"):
        check_bytes(ImageFile.open(path))


def test_a_reference_of_another_resolution_is_refused(file, tmp_path):
    other = ImageFile.open(save(tmp_path / "other.npz", np.zeros((2, 8, 8, 3), np.uint8)))
    with pytest.raises(InputError, match="images are of 4x6, .*of 8x8: take the reference"):
        check_comparable(file.shape, other)


@pytest.mark.parametrize("kept", [0, 10, 400, -30])
def test_a_corrupt_file_is_refused(tmp_path, kept):
    path = tmp_path / "whole.npz"
    whole = read_bytes(save(path, IMAGES))
    path.write_bytes(whole[:kept])
    with pytest.raises(InputError, match="cannot be read"):
        ImageFile.open(str(path))


def test_damage_within_a_file_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "damaged.npz"
    whole = bytearray(read_bytes(save(path, IMAGES)))
    whole[300] ^= 255
    path.write_bytes(bytes(whole))
    with pytest.raises(InputError, match="cannot be read"):
        ImageFile.open(str(path)).read()


def test_a_file_that_is_not_there_and_one_that_is_no_archive(tmp_path):
    with pytest.raises(InputError, match="no file"):
        ImageFile.open(str(tmp_path / "none.npz"))
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("a.png", b"a picture")
    with pytest.raises(InputError, match="holds no arrays"):
        ImageFile.open(str(tmp_path / "pictures.zip"))
    np.save(tmp_path / "array.npy", IMAGES)
    with pytest.raises(InputError, match="cannot be read"):
        ImageFile.open(str(tmp_path / "array.npy"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "one of mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "not of the same features"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not all finite"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        ImageFile.open(save(tmp_path / "bad.npz", **arrays))
