import gzip
import struct

import numpy as np
import pytest

from dit_jax.data import Idx
from dit_jax.errors import InputError

IMAGES = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def encode(array):
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(encode(IMAGES))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(encode(LABELS))
    return tmp_path


def test_images_are_framed_evenly_and_labels_kept(folder):
    source = Idx(str(folder), size=6)
    records = source.open()
    assert len(records) == 5 and records[2]["label"] == 4
    assert records[2]["image"].shape == source.shape == (6, 6, 1)
    np.testing.assert_array_equal(records[2]["image"][1:5, 1:5, 0], IMAGES[2])
    assert records[2]["image"].sum() == IMAGES[2].sum()


def test_an_odd_frame_puts_the_extra_line_last(folder):
    image = Idx(str(folder), size=5).open()[1]["image"]
    np.testing.assert_array_equal(image[:4, :4, 0], IMAGES[1])


def test_gzipped_files_and_the_test_split(tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(encode(IMAGES)))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(encode(LABELS)))
    assert len(Idx(str(tmp_path), size=4).open("test")) == 5


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3-ubyte", encode(LABELS), "not an IDX file of rank 3"),
        ("train-images-idx3-ubyte", encode(IMAGES)[:-1], "truncated"),
        ("train-images-idx3-ubyte", encode(IMAGES)[:9], "truncated"),
        ("train-images-idx3-ubyte", b"", "not an IDX file"),
        ("train-images-idx3-ubyte", encode(IMAGES[:0]), "no images"),
        ("train-labels-idx1-ubyte", encode(LABELS[:4]), "5 images but .* 4 labels"),
        ("train-labels-idx1-ubyte", encode(LABELS + 5), "record 4 has label 10"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(folder, file, content, message):
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        Idx(str(folder), size=4).open()
    assert file in str(error.value)


def test_a_truncated_gzip_is_named(folder):
    name = folder / "train-images-idx3-ubyte"
    name.unlink()
    name.with_suffix(".gz").write_bytes(gzip.compress(encode(IMAGES))[:-12])
    with pytest.raises(InputError, match=r"cannot read .*train-images-idx3-ubyte.gz"):
        Idx(str(folder), size=4).open()


def test_missing_files_say_where_fashion_mnist_comes_from(tmp_path):
    with pytest.raises(InputError, match="train-images.*apt-get install dataset-fashion-mnist"):
        Idx(str(tmp_path)).open()


def test_images_larger_than_size_are_refused(folder):
    with pytest.raises(InputError, match="4x4 pixels, larger than `size` 3"):
        Idx(str(folder), size=3).open()
