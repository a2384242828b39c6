"""DiT, SiT and REPA files against PyTorch twins, and there and back."""

import argparse

import jax
import numpy as np
import pytest

import dit_jax
from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch, convert_to_torch

torch = pytest.importorskip("torch")

from tests.torch_twins import dit as twins  # noqa: E402
from tests.torch_twins.to_jax import to_nchw, to_nhwc  # noqa: E402

SIZES = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 128,
    "depth": 3,
    "num_heads": 2,
}


@pytest.fixture(scope="module")
def twin():
    return twins.randomise_(twins.DiT(**SIZES, num_classes=10), seed=0).eval()


def inputs(batch=3):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 8, 8, 4)).astype(np.float32)
    return x, np.array([3.0, 500.0, 999.0], np.float32), np.array([0, 7, 10])


def saved(tmp_path, tensors, name="model.pt"):
    torch.save(tensors, tmp_path / name)
    return str(tmp_path / name)


def relative_error(ours, theirs):
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def test_a_converted_dit_is_the_twin(twin, tmp_path):
    file = saved(tmp_path, twin.state_dict())
    convert_from_torch(file, str(tmp_path / "run"), layout="dit")
    run = dit_jax.load(str(tmp_path / "run"))
    x, t, label = inputs()
    with torch.no_grad():
        theirs = twin(*map(torch.from_numpy, (to_nchw(x), t, label)))
    apply = jax.jit(lambda x: run.model.apply({"params": run.params}, x, t, {"label": label}))
    assert relative_error(apply(x).prediction, to_nhwc(theirs)) <= 1e-5


@pytest.mark.parametrize("name", ["back.pt", "back.safetensors", "back.bin"])
def test_there_and_back_is_bit_equal(twin, tmp_path, name):
    from safetensors.torch import load_file

    file = saved(tmp_path, twin.state_dict())
    convert_from_torch(file, str(tmp_path / "run"), layout="dit")
    convert_to_torch(str(tmp_path / "run"), str(tmp_path / name))
    path = tmp_path / name
    back = load_file(path) if name.endswith("safetensors") else torch.load(path, weights_only=True)
    assert back.keys() == twin.state_dict().keys()
    for key, value in twin.state_dict().items():
        assert torch.equal(back[key], value), key


def test_the_average_is_taken_prefixes_go_and_the_choice_is_shown(twin, tmp_path):
    ema = {f"module._orig_mod.{key}": value + 1 for key, value in twin.state_dict().items()}
    ema["module._orig_mod.pos_embed"] = twin.state_dict()["pos_embed"]
    args = argparse.Namespace(model="DiT-S/2", lr=1e-4)
    file = saved(tmp_path, {"model": twin.state_dict(), "ema": ema, "opt": {}, "args": args})
    lines = convert_from_torch(file, str(tmp_path / "run"), layout="dit")
    assert lines[0] == "model.pt, its 'ema' weights (not model), read as dit"
    bias = twin.state_dict()["final_layer.linear.bias"].numpy()
    params = dit_jax.load(str(tmp_path / "run")).params
    np.testing.assert_array_equal(params["final"]["linear"]["bias"], bias + 1)
    convert_from_torch(file, str(tmp_path / "raw"), layout="dit", group="model")
    params = dit_jax.load(str(tmp_path / "raw")).params
    np.testing.assert_array_equal(params["final"]["linear"]["bias"], bias)


def test_what_could_be_two_families_has_to_be_named(twin, tmp_path):
    file = saved(tmp_path, twin.state_dict())
    with pytest.raises(InputError, match="fit dit or sit: say which with --layout or --model"):
        convert_from_torch(file, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
