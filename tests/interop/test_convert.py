"""Which of a file's weights are taken, and as whose."""

import argparse

import numpy as np
import pytest

import dit_jax
from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch

torch = pytest.importorskip("torch")

from tests.torch_twins import ddt  # noqa: E402
from tests.torch_twins import dit as twins  # noqa: E402

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


def saved(tmp_path, tensors, name="model.pt"):
    torch.save(tensors, tmp_path / name)
    return str(tmp_path / name)


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


def test_a_lightning_checkpoint_gives_its_average(tmp_path):
    sizes = SIZES | {"input_size": 32, "patch_size": 8}
    del sizes["depth"]
    twin = ddt.DDT(**sizes, encoder_depth=8, decoder_depth=4, num_classes=10)
    state = {f"ema_denoiser.{key}": value + 1 for key, value in twin.state_dict().items()}
    state |= {f"denoiser.{key}": value for key, value in twin.state_dict().items()}
    state |= {"diffusion_trainer.proj.0.0.weight": torch.zeros(3, 3)}
    file = saved(tmp_path, {"state_dict": state, "epoch": 3})
    lines = convert_from_torch(file, str(tmp_path / "run"))
    assert lines[0] == "model.pt, its 'ema_denoiser' weights (not denoiser), read as ddt"
    params = dit_jax.load(str(tmp_path / "run")).params
    bias = twin.state_dict()["final_layer.linear.bias"].numpy()
    np.testing.assert_array_equal(
        params["final"]["linear"]["bias"].reshape(8, 8, 4)[0, 0], bias[:4] + 1
    )
