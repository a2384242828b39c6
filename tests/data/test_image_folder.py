import logging

import numpy as np
import pytest
from PIL import Image

from dit_jax.data import ImageFolder
from dit_jax.errors import InputError


def test_sorted_subfolders_are_the_labels(image_folder):
    source = ImageFolder(str(image_folder), size=8)
    records = source.open()
    assert source.num_classes == 2 and len(records) == 6
    assert [records[i]["label"] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    image = records[4]["image"]
    assert image.shape == source.shape == (8, 8, 3) and image.dtype == np.uint8
    assert np.abs(image.mean((0, 1)) - [40, 100, 200]).max() < 3


def test_images_directly_in_the_folder_have_no_labels(image_folder):
    source = ImageFolder(str(image_folder / "ants"), size=8)
    assert source.num_classes == 0
    assert [source.open()[i]["label"] for i in range(3)] == [0, 0, 0]


def test_without_split_folders_both_splits_are_the_same(image_folder):
    source = ImageFolder(str(image_folder), size=8)
    assert source.open("train") == source.open("test")


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_split_folders_are_the_splits(tmp_path, test_name):
    for name in ("train/a", "train/b", f"{test_name}/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
    source = ImageFolder(str(tmp_path), size=8)
    assert source.num_classes == 2 and len(source.open()) == 2
    test = source.open("test")
    assert len(test) == 1 and test[0]["label"] == 1


def test_a_class_that_is_not_trained_on_is_refused(tmp_path):
    for name in ("train/a", "test/c"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
    with pytest.raises(InputError, match="test/c is no class of the training split"):
        ImageFolder(str(tmp_path)).open("test")


def test_stop_names_the_corrupt_file(image_folder):
    corrupt(image_folder / "ants" / "1.JPG")
    records = ImageFolder(str(image_folder), size=8).open()
    records[0]
    with pytest.raises(InputError, match=r"ants/1\.JPG"):
        records[1]


def test_skip_warns_and_delivers_the_next_readable_record(image_folder, caplog):
    corrupt(image_folder / "ants" / "1.JPG")
    corrupt(image_folder / "bees" / "2.JPG")
    records = ImageFolder(str(image_folder), size=8, on_error="skip").open()
    with caplog.at_level(logging.WARNING):
        replaced, wrapped = records[1], records[5]
    np.testing.assert_array_equal(replaced["image"], records[2]["image"])
    np.testing.assert_array_equal(wrapped["image"], records[0]["image"])
    assert replaced["label"] == wrapped["label"] == 0
    assert "ants/1.JPG" in caplog.text and "bees/2.JPG" in caplog.text


def test_skip_stops_when_nothing_is_readable(image_folder):
    for file in image_folder.glob("*/*"):
        corrupt(file)
    with pytest.raises(InputError, match="none of the 6 images"):
        ImageFolder(str(image_folder), size=8, on_error="skip").open()[3]


def test_a_missing_folder_an_empty_one_and_an_empty_class_are_refused(image_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(InputError, match="no folder .*nowhere"):
        ImageFolder(str(tmp_path / "nowhere")).open()
    with pytest.raises(InputError, match="empty holds no images"):
        ImageFolder(str(tmp_path / "empty")).open()
    with pytest.raises(InputError, match="class subfolder .*empty holds no images"):
        ImageFolder(str(image_folder)).open()


def test_images_beside_class_subfolders_are_refused(image_folder):
    Image.new("RGB", (8, 8)).save(image_folder / "stray.png")
    with pytest.raises(InputError, match="both subfolders .*stray.png"):
        ImageFolder(str(image_folder)).open()


def corrupt(file):
    file.write_bytes(file.read_bytes()[:200])
