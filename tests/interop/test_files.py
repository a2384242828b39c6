"""Corrupt and hostile files: refused in one line, nothing run, nothing left behind."""

import argparse
import dataclasses
import json
import pathlib
import pickle
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

import dit_jax
from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch
from dit_jax.interop.files import open_state_dict

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from tests.torch_twins import dit as twins  # noqa: E402


@pytest.fixture(scope="module")
def weights():
    sizes = {
        "input_size": 4,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 64,
        "depth": 1,
        "num_heads": 1,
    }
    return twins.randomise_(twins.DiT(**sizes, num_classes=10), seed=0).state_dict()


def refused(tmp_path, file, match, **options):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=match) as error:
        convert_from_torch(str(file), str(tmp_path / "out"), layout="dit", **options)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def save_legacy(tensors, file):
    """As PyTorch did before 1.6."""
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


SAVE = {
    "zipped.pt": torch.save,
    "legacy.pt": save_legacy,
    "model.safetensors": safetensors_torch.save_file,
}


@pytest.mark.parametrize("name", SAVE)
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_truncated(weights, tmp_path, name, kept):
    file = tmp_path / name
    SAVE[name](weights, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    refused(tmp_path, file, "is damaged or no")


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_wrong_magic(tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    refused(tmp_path, file, "is damaged or no")


class Exploit:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return pathlib.Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_does_not(tmp_path, zipped):
    trace, file = tmp_path / "was_run", tmp_path / "model.pt"
    torch.save({"x": Exploit(trace)}, file, _use_new_zipfile_serialization=zipped)
    refused(tmp_path, file, "which is not weights, and was not run")
    assert not trace.exists()


def test_a_bare_pickle_that_would_run_code_does_not(tmp_path):
    trace, file = tmp_path / "was_run", tmp_path / "model.bin"
    file.write_bytes(pickle.dumps(Exploit(trace)))
    refused(tmp_path, file, "which is not weights, and was not run|is damaged or no")
    assert not trace.exists()


def test_a_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path, tmp_path / "model.pt", "is damaged or no")


def test_every_problem_is_in_one_error(weights, tmp_path):
    broken = dict(weights)
    broken["blocks.0.mlp.fc1.weight"] = torch.zeros(257, 64)
    broken["blocks.0.mlp.fc3.weight"] = torch.zeros(3)
    del broken["blocks.0.attn.proj.bias"]
    torch.save(broken, tmp_path / "model.pt")
    with pytest.raises(InputError) as error:
        convert_from_torch(str(tmp_path / "model.pt"), str(tmp_path / "out"), layout="dit")
    message = str(error.value)
    assert message.startswith("3 problems:")
    assert "blocks.0.mlp.fc1.weight is (257, 64) and should be (256, 64)" in message
    assert "missing blocks.0.attn.proj.bias (64,)" in message
    assert "unexpected blocks.0.mlp.fc3.weight (3,)" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(weights, tmp_path, value):
    broken = {key: tensor.clone() for key, tensor in weights.items()}
    broken["blocks.0.attn.qkv.weight"][5, 5] = value
    torch.save(broken, tmp_path / "model.pt")
    refused(tmp_path, tmp_path / "model.pt", r"attn\.qkv\.weight holds values that are not finite")


def test_a_position_table_that_the_model_does_not_compute_is_refused(weights, tmp_path):
    torch.save(weights | {"pos_embed": weights["pos_embed"] + 1e-3}, tmp_path / "model.pt")
    refused(tmp_path, tmp_path / "model.pt", "pos_embed is not what this model computes")


def test_another_number_of_classes(weights, tmp_path):
    torch.save(weights, tmp_path / "model.pt")
    file = str(tmp_path / "model.pt")
    table = (
        r"embedding_table\.weight is \(11, 64\) and should be \(6, 64\) \(label_embed/.*--reinit"
    )
    refused(tmp_path, file, table, num_classes=5)
    out = str(tmp_path / "out")
    lines = convert_from_torch(
        file, out, layout="dit", num_classes=5, reinitialise=("label_embed",)
    )
    assert "initialised anew label_embed/table/embedding" in lines
    run = dit_jax.load(out)
    assert run.model.num_classes == 5
    table = np.asarray(run.params["label_embed"]["table"]["embedding"])
    assert table.shape == (6, 64)
    assert 0.01 < table.std() < 0.03  # N(0, 0.02), as DiT initialises it.


def test_a_path_that_names_no_parameter_cannot_be_initialised(weights, tmp_path):
    torch.save(weights, tmp_path / "model.pt")
    refused(
        tmp_path, tmp_path / "model.pt", "no parameter begins with head", reinitialise=("head",)
    )


def test_a_file_of_another_family_is_named(weights, tmp_path):
    projector = {"projectors.0.0.weight": torch.zeros(8, 64)}
    torch.save(weights | projector, tmp_path / "model.pt")
    refused(tmp_path, tmp_path / "model.pt", "this is a file of repa, not of dit")
    torch.save({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "model.pt")
    refused(tmp_path, tmp_path / "model.pt", "no known family has keys such as conv1.weight")


def test_what_is_no_state_dict(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "model.pt")
    refused(tmp_path, tmp_path / "model.pt", "holds a list, not a state dict")
    torch.save({"step": 3}, tmp_path / "model.pt")
    refused(tmp_path, tmp_path / "model.pt", "holds no tensors")
    refused(tmp_path, tmp_path / "none.pt", "no file")
    refused(tmp_path, tmp_path, "holds no single weights file|holds no tensors")
    (tmp_path / "model.txt").write_text("weights")
    refused(tmp_path, tmp_path / "model.txt", "is of an unknown kind")


def test_a_group_that_the_file_lacks(weights, tmp_path):
    torch.save({"model": weights, "opt": {}}, tmp_path / "model.pt")
    refused(tmp_path, tmp_path / "model.pt", "has no 'ema' weights: it has model", group="ema")
    torch.save(weights, tmp_path / "model.pt")
    refused(tmp_path, tmp_path / "model.pt", "holds one bare state dict", group="ema")


def test_an_output_that_is_there_is_not_touched(weights, tmp_path):
    torch.save(weights, tmp_path / "model.pt")
    (tmp_path / "out").mkdir()
    refused(tmp_path, tmp_path / "model.pt", "is there already")


def test_shards_are_read_as_one_file(weights, tmp_path):
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        safetensors_torch.save_file({k: weights[k].contiguous() for k in keys}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {k: file for file, keys in parts.items() for k in keys}})
    )
    for given in (index, tmp_path):
        state = open_state_dict(given)
        assert state.tensors.keys() == weights.keys()
        for key, tensor in weights.items():
            np.testing.assert_array_equal(state.tensors[key].read(), tensor.numpy())
    (tmp_path / "b.safetensors").unlink()
    refused(tmp_path, index, "names files that are not there")
    index.write_text("{}")
    refused(tmp_path, index, "has no weight_map")


@pytest.mark.parametrize("name", SAVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_read_as_they_are(tmp_path, name, dtype):
    value = torch.arange(6, dtype=dtype).reshape(2, 3) / 3
    SAVE[name]({"x": value}, tmp_path / name)
    stored = open_state_dict(tmp_path / name).tensors["x"]
    assert stored.shape == (2, 3)
    assert stored.read().dtype == np.dtype(getattr(ml_dtypes, stored.dtype, stored.dtype))
    np.testing.assert_array_equal(stored.read().astype(np.float64), value.double().numpy())


def test_a_legacy_file_is_read_without_torch(tmp_path, monkeypatch):
    """Views of one storage, parameters, counters, no elements, and what a script saves beside."""
    base = torch.arange(24.0).reshape(4, 6)
    model = {
        "whole": base,
        "transposed": base.T,
        "inside": base[1:3, ::2],
        "expanded": base[:, :1].expand(4, 3),
        "parameter": torch.nn.Parameter(base[2]),
        "counter": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    options = argparse.Namespace(depth=2, name="tiny")
    save_legacy({"model": model, "args": options, "step": 3}, tmp_path / "model.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    state = open_state_dict(tmp_path / "model.pth")
    assert state.group == "model"
    assert state.tensors.keys() == model.keys()
    for key, value in model.items():
        found, expected = state.tensors[key].read(), value.detach().numpy()
        assert found.dtype == expected.dtype and state.tensors[key].shape == expected.shape
        np.testing.assert_array_equal(found, expected, err_msg=key)


class Numbers:
    """Stands for the storage of a forged tensor."""


@dataclasses.dataclass
class Forged:
    offset: int
    shape: tuple
    strides: tuple

    def __reduce__(self):
        view = (Numbers(), self.offset, self.shape, self.strides, False, None)
        return torch._utils._rebuild_tensor_v2, view


def save_forged(file, **forged):
    """A legacy file of tensors of a storage of six numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Numbers):
                return ("storage", torch.FloatStorage, "0", "cpu", 6, None)

    with file.open("wb") as stream:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, forged, ["0"]):
            Pickler(stream, 2).dump(value)
        stream.write((6).to_bytes(8, "little") + np.arange(6, dtype=np.float32).tobytes())


def test_a_tensor_does_not_reach_beyond_its_storage(tmp_path):
    save_forged(tmp_path / "model.pt", x=Forged(1, (2, 2), (3, 1)))
    found = open_state_dict(tmp_path / "model.pt").tensors["x"].read()
    np.testing.assert_array_equal(found, [[1, 2], [4, 5]])
    views = [
        (2, (2, 2), (3, 1)),
        (0, (7,), (1,)),
        (3, (2,), (-1,)),
        (-1, (2,), (1,)),
        (0, (2,), ()),
    ]
    for view in views:
        save_forged(tmp_path / "model.pt", x=Forged(*view))
        refused(tmp_path, tmp_path / "model.pt", "is damaged or no")


def test_a_pickle_cannot_say_that_a_storage_is_longer(tmp_path):
    """A pickle may set attributes: here a storage's, and back before its numbers are looked for."""
    file = tmp_path / "model.pt"
    save_forged(file, x=Forged(0, (32767,), (1,)), y=Forged(0, (6,), (1,)))
    start, middle, end = file.read_bytes().split(pickle.BINPERSID)
    longer, right = (
        b"%s}U\x06lengthM%ssb" % (pickle.BINPERSID, length.to_bytes(2, "little"))
        for length in (32767, 6)
    )
    file.write_bytes(start + longer + middle + right + end)
    refused(tmp_path, file, "is damaged or no")
