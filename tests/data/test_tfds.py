import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dit_jax.data import TFDS, Loader, batches
from dit_jax.data.transforms import adm_center_crop
from dit_jax.errors import InputError


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r'pip install "dit_jax\[tfds\]"'):
        TFDS("imagenet2012").open()


def jpeg(i):
    file = io.BytesIO()
    gradient = np.linspace(0, 25 * i, 40 * 50 * 3).reshape(40, 50, 3).astype(np.uint8)
    Image.fromarray(gradient).save(file, "JPEG")
    file.seek(0)
    return file


def prepare(folder, name, labelled=True, file_format="array_record"):
    """Prepares a real data set of six training and three validation JPEGs."""
    tfds = pytest.importorskip("tensorflow_datasets")
    kinds = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")}
    if labelled:
        kinds["label"] = tfds.features.ClassLabel(num_classes=3)

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kinds))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(6), "validation": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": jpeg(i), "label": i % 3} if labelled else {"image": jpeg(i)}

    Tiny.name = name
    Tiny(data_dir=folder, file_format=file_format).download_and_prepare()
    return TFDS(name, size=16, data_dir=str(folder))


def test_a_prepared_set_is_read_and_cropped(tmp_path):
    source = prepare(tmp_path, "tiny")
    train, test = source.open("train"), source.open("test")
    assert (len(train), len(test), source.num_classes) == (6, 3, 3)
    expected = {adm_center_crop(Image.open(jpeg(i)), 16).tobytes(): i % 3 for i in range(6)}
    assert len(expected) == 6
    delivered = {train[i]["image"].tobytes(): train[i]["label"] for i in range(6)}
    assert delivered == expected
    assert train[0]["image"].shape == source.shape == (16, 16, 3)


def test_reader_processes_can_open_it(tmp_path):
    records = prepare(tmp_path, "tiny").open()
    one, two = (
        next(
            batches(
                records, batch_size=4, start=0, steps=1, seed=0, num_classes=3, loader=Loader(w)
            )
        )
        for w in (0, 1)
    )
    np.testing.assert_array_equal(one["image"], two["image"])


def test_a_set_without_labels(tmp_path):
    source = prepare(tmp_path, "bare", labelled=False)
    assert source.num_classes == 0 and source.open()[0]["label"] == 0


def test_unknown_sets_and_splits_are_refused(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(InputError, match="no TFDS set nosuchset in") as error:
        TFDS("nosuchset", data_dir=str(tmp_path)).open()
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="mnist is not prepared in .*tfds build mnist"):
        TFDS("mnist", data_dir=str(tmp_path)).open()


def test_reading_needs_no_tensorflow(tmp_path):
    prepare(tmp_path, "tiny")
    code = (
        "import sys; from dit_jax.data import TFDS;"
        f"TFDS('tiny', size=8, data_dir={str(tmp_path)!r}).open()[0];"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
