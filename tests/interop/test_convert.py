"""Which of a file's weights are taken, and as whose."""

import argparse
import subprocess
import sys

import jax
import numpy as np
import pytest

import dit_jax
from dit_jax.diffusion import Flow
from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch, convert_to_torch
from tests.evaluation.tiny_run import save, tiny_run

torch = pytest.importorskip("torch")

from tests.torch_twins import ddt, repa  # noqa: E402
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


def command(*arguments):
    line = [sys.executable, "-m", "dit_jax", "convert", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_the_command_converts_and_reports(twin, tmp_path):
    file = saved(tmp_path, twin.state_dict())
    done = command("from-torch", file, str(tmp_path / "run"), "--layout", "sit")
    assert done.returncode == 0, done.stderr
    assert "model.pt, read as sit" in done.stdout
    assert "checked pos_embed: sines that the model computes" in done.stdout
    assert isinstance(dit_jax.load(str(tmp_path / "run")).process, Flow)


def test_the_command_says_what_was_wrong_in_one_line(tmp_path):
    done = command("from-torch", str(tmp_path / "none.pt"), str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: no file '{tmp_path / 'none.pt'}'"]


def test_a_run_of_our_own_goes_out_and_comes_back(tmp_path):
    """A flow in the library's clock is written as REPA's, whose clock is the same."""
    sizes = {key: SIZES[key] for key in ("input_size", "patch_size", "in_channels", "hidden_size")}
    twin = repa.SiT(**sizes, depth=2, num_heads=2, num_classes=10, projector_size=8)
    file = saved(tmp_path, twin.state_dict())
    convert_from_torch(file, str(tmp_path / "run"))
    lines = convert_to_torch(str(tmp_path / "run"), str(tmp_path / "back.pt"))
    assert lines[0].endswith("as repa")
    with pytest.raises(InputError, match="cannot be written as dit, but as repa"):
        convert_to_torch(str(tmp_path / "run"), str(tmp_path / "dit.pt"), layout="dit")
    with pytest.raises(InputError, match="no layout 'rapa': choose one of"):
        convert_to_torch(str(tmp_path / "run"), str(tmp_path / "x.pt"), layout="rapa")
    with pytest.raises(InputError, match="is a layout of single files"):
        convert_to_torch(str(tmp_path / "run"), str(tmp_path / "folder"))
    with pytest.raises(InputError, match="is there already"):
        convert_to_torch(str(tmp_path / "run"), str(tmp_path / "back.pt"))
    with pytest.raises(InputError, match="came without data"):
        dit_jax.load(str(tmp_path / "run")).experiment.data.open()


def test_a_run_written_as_safetensors_comes_back_as_itself(tmp_path):
    """Its heads are no wider than 8, its clock is no DiT's: no tensor tells so."""
    save(tmp_path / "run", tiny_run())
    file = str(tmp_path / "run.safetensors")
    convert_to_torch(str(tmp_path / "run"), file)
    convert_from_torch(file, str(tmp_path / "back"))
    before, back = (dit_jax.load(str(tmp_path / name)) for name in ("run", "back"))
    for part in ("model", "process", "sampling", "latents"):
        assert getattr(back.experiment, part) == getattr(before.experiment, part)
    jax.tree.map(np.testing.assert_array_equal, back.params, before.params)
    assert back.shape == before.shape

    with pytest.raises(InputError, match="not of lightning-dit"):  # Its word is taken, if asked.
        convert_from_torch(file, str(tmp_path / "other"), layout="lightning-dit")
    (line,) = convert_to_torch(str(tmp_path / "run"), str(tmp_path / "run.pt"))[1:]
    assert line == "tensors alone: to come back as the same run, write .safetensors"
