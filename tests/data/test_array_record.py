import io

import numpy as np
import pytest
from PIL import Image

from dit_jax.data import ArrayRecords, batches, write_array_records
from dit_jax.errors import InputError

pytest.importorskip("array_record")


def latents(count, shape=(4, 4, 8)):
    rng = np.random.default_rng(0)
    return [
        {"image": rng.standard_normal(shape).astype(np.float32), "label": i} for i in range(count)
    ]


def test_float_latents_return_as_written(tmp_path):
    written = latents(5)
    write_array_records(str(tmp_path), written)
    source = ArrayRecords(str(tmp_path), classes=5)
    records = source.open()
    assert len(records) == 5 and source.shape == (4, 4, 8) and source.num_classes == 5
    for i in range(5):
        assert records[i]["label"] == i and records[i]["image"].dtype == np.float32
        np.testing.assert_array_equal(records[i]["image"], written[i]["image"])


def test_shards_hold_every_record_once(tmp_path):
    write_array_records(str(tmp_path), iter(latents(10)), shards=3)
    records = ArrayRecords(str(tmp_path)).open()
    assert len(list(tmp_path.iterdir())) == 3
    assert [records[i]["label"] for i in range(10)] == [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]


def test_encoded_images_are_decoded_to_rgb(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    write_array_records(str(tmp_path), [{"image": file.getvalue(), "label": 0}])
    source = ArrayRecords(str(tmp_path), classes=0)
    assert source.shape == (4, 4, 3)
    np.testing.assert_array_equal(source.open()[0]["image"], pixels)


def test_split_folders_are_the_splits_and_a_single_file_serves_both(tmp_path):
    write_array_records(str(tmp_path / "train"), latents(3))
    write_array_records(str(tmp_path / "test"), latents(2))
    source = ArrayRecords(str(tmp_path))
    assert (len(source.open("train")), len(source.open("test"))) == (3, 2)
    file = ArrayRecords(str(next((tmp_path / "train").iterdir())))
    assert len(file.open("train")) == len(file.open("test")) == 3


def test_a_folder_of_training_files_alone_serves_both_splits(tmp_path):
    write_array_records(str(tmp_path / "train"), latents(3))
    source = ArrayRecords(str(tmp_path))
    assert len(source.open("train")) == len(source.open("test")) == 3


def test_files_that_are_missing_are_counted_and_named(tmp_path):
    write_array_records(str(tmp_path), latents(6), shards=3)
    (tmp_path / "part-00001-of-00003.array_record").unlink()
    with pytest.raises(InputError, match="lacks 1 files, of which part-00001-of-00003"):
        ArrayRecords(str(tmp_path)).open()


def test_mirrored_latents_are_others_and_not_made_up(tmp_path):
    plain = latents(8)
    write_array_records(str(tmp_path), plain, shards=2)
    source = ArrayRecords(str(tmp_path), classes=8, flip=True)
    with pytest.raises(InputError, match="not those of mirrored images too.*--data.no-flip"):
        source.open()
    assert len(source.open("test")) == 8  # Where nothing is mirrored.
    mirrored = [{"image": -record["image"], "label": record["label"]} for record in plain]
    write_array_records(str(tmp_path / "mirrored"), mirrored, shards=2)
    options = {"batch_size": 64, "start": 0, "steps": 1, "seed": 0, "num_classes": 8}
    batch = next(batches(source.open(), flip=True, **options))
    signs = set()
    for image, label in zip(batch["image"], batch["label"]):
        sign = np.sign(image[0, 0, 0] * plain[label]["image"][0, 0, 0])
        np.testing.assert_array_equal(image, sign * plain[label]["image"])
        signs.add(sign)
    assert signs == {-1, 1}


def test_mirrored_records_must_be_as_many(tmp_path):
    write_array_records(str(tmp_path), latents(4), shards=2)
    write_array_records(str(tmp_path / "mirrored"), latents(3), shards=2)
    with pytest.raises(InputError, match="mirrored has 3 records for 4 images"):
        ArrayRecords(str(tmp_path)).open()
    (tmp_path / "mirrored" / "part-00001-of-00002.array_record").unlink()
    with pytest.raises(InputError, match="mirrored lacks part-00001-of-00002"):
        ArrayRecords(str(tmp_path)).open()


def test_pixels_are_mirrored_in_place(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_array_records(str(tmp_path), [{"image": pixels, "label": 0}])
    records = ArrayRecords(str(tmp_path), flip=True).open()
    np.testing.assert_array_equal(records.mirrored(0)["image"], pixels[:, ::-1])


@pytest.mark.parametrize("kept", [0, 100, 0.5, -3])
def test_a_truncated_file_is_named(tmp_path, kept):
    write_array_records(str(tmp_path), latents(4), shards=2)
    file = max(tmp_path.iterdir())
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=file.name):
        ArrayRecords(str(tmp_path)).open()


def test_a_damaged_record_is_named(tmp_path):
    write_array_records(str(tmp_path), latents(1))
    file = next(tmp_path.iterdir())
    content = bytearray(file.read_bytes())
    content[100] ^= 255
    file.write_bytes(content)
    with pytest.raises(InputError, match="cannot read record 0 of"):
        ArrayRecords(str(tmp_path)).open()


def test_other_shapes_and_labels_are_refused_by_record(tmp_path):
    write_array_records(str(tmp_path / "train"), latents(4))
    with pytest.raises(InputError, match="record 3 .* label 3, outside the 3 classes"):
        ArrayRecords(str(tmp_path / "train"), classes=3).open()[3]
    with pytest.raises(InputError, match="record 1 has shape"):
        write_array_records(str(tmp_path / "mixed"), latents(1) + latents(1, (2, 2, 8)))
    write_array_records(str(tmp_path / "a"), latents(1))
    write_array_records(str(tmp_path / "b"), latents(1, (2, 2, 8)))
    next((tmp_path / "b").iterdir()).rename(tmp_path / "a" / "z.arrayrecord")
    with pytest.raises(InputError, match=r"record 1 .* shape \(2, 2, 8\)"):
        ArrayRecords(str(tmp_path / "a")).open()[1]


def test_an_interrupted_write_leaves_nothing_to_read_and_can_be_repeated(tmp_path):
    def interrupted():
        yield from latents(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_array_records(str(tmp_path), interrupted())
    with pytest.raises(InputError, match="no ArrayRecord files"):
        ArrayRecords(str(tmp_path)).open()
    write_array_records(str(tmp_path), latents(3))
    assert len(ArrayRecords(str(tmp_path)).open()) == 3


def test_written_records_are_never_overwritten(tmp_path):
    write_array_records(str(tmp_path), latents(1))
    with pytest.raises(InputError, match="already holds ArrayRecord files"):
        write_array_records(str(tmp_path), latents(2))
