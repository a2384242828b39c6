"""Folders of diffusers' AutoencoderRAE: read, written back, and told from others."""

import functools
import json

import jax
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch, convert_to_torch
from dit_jax.interop.layouts import LAYOUTS, find_layout
from dit_jax.interop.rae import latents_of
from dit_jax.latents.rae import Normalization, RepresentationAutoencoder, ViTDecoder
from dit_jax.latents.rae.encoders import MAE, Dinov2, Perceptron, SigLIP
from dit_jax.layers.position import sincos_2d
from dit_jax.weights import load_weights

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests.latents.rae import encoder_helpers  # noqa: E402
from tests.latents.rae.rae_helpers import (  # noqa: E402
    KINDS,
    assert_equal,
    images,
    make_diffusers,
    read_by_diffusers,
    shapes_of,
)
from tests.torch_twins.to_jax import to_nchw, to_nhwc  # noqa: E402

WEIGHTS = "diffusion_pytorch_model.safetensors"
# How transformers 4 spelled what transformers 5 has in memory, and diffusers saves.
RELEASED = {
    "dinov2": {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    }
}
RELEASED["mae"] = RELEASED["dinov2"] | {
    "encoder.layers": "encoder.encoder.layer",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


@functools.cache
def twin_of(kind):
    pytest.importorskip("diffusers")
    return make_diffusers(kind)


def through(source, folder, name):
    """Converts a file or a folder, and back."""
    convert_from_torch(str(source), str(folder / "ours"))
    convert_to_torch(str(folder / "ours"), str(folder / name))
    return folder / name


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_loads_the_folder_as_it_is(tmp_path, kind):
    twin_of(kind).save_pretrained(tmp_path / "theirs")
    folder = through(tmp_path / "theirs", tmp_path, "back")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]
    assert_equal(*(load_file(tmp_path / side / WEIGHTS) for side in ("theirs", "back")))
    assert_equal(twin_of(kind).state_dict(), read_by_diffusers(folder).state_dict())
    configs = [(tmp_path / side / "config.json").read_text() for side in ("theirs", "back")]
    assert json.loads(configs[0]) == json.loads(configs[1])


@pytest.mark.parametrize("kind", RELEASED)
def test_names_of_transformers_4_give_the_same_parameters_and_come_back(tmp_path, kind):
    """Such a file diffusers can load with transformers 4 alone."""
    twin_of(kind).save_pretrained(tmp_path / "theirs")
    convert_from_torch(str(tmp_path / "theirs"), str(tmp_path / "five"))
    released = {}
    for key, value in twin_of(kind).state_dict().items():
        for five, four in RELEASED[kind].items():
            key = key.replace(five, four) if key.startswith("encoder.") else key
        released[key] = value
    # A table that older versions of diffusers saved, and newer ones leave aside.
    released["decoder.decoder_pos_embed"] = torch.zeros(1, 257, 64)
    save_file(released, tmp_path / "theirs" / WEIGHTS, metadata={"format": "pt"})
    back = through(tmp_path / "theirs", tmp_path, "back")
    assert_equal(released, load_file(back / WEIGHTS))
    params = [load_weights(str(tmp_path / name), None) for name in ("five", "ours")]
    jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_is_recognised_by_its_layout_alone(kind):
    shapes = shapes_of(twin_of(kind).state_dict())
    assert [x.name for x in LAYOUTS if x.matches(shapes)] == ["diffusers-rae"]


ENCODER = {"hidden": 128, "depth": 2, "heads": 2, "affine": False}
EXPECTED = {
    "dinov2": Dinov2(**ENCODER, ffn=Perceptron(512), registers=4),
    "siglip2": SigLIP(**ENCODER),
    "mae": MAE(**ENCODER),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_is_read_off_the_tensors_and_the_configuration(kind):
    twin, layout = twin_of(kind), find_layout("diffusers-rae")
    shapes = shapes_of(twin.state_dict())
    decoder = ViTDecoder(twin.config.patch_size, 64, 2, 2, Perceptron(96, initial="torch"))
    expected = RepresentationAutoencoder(EXPECTED[kind], decoder, Normalization("deviation"))
    found = layout.describe(shapes, dict(twin.config))
    side = twin.config.encoder_input_size
    assert found.module == expected
    assert found.inputs[1].shape == (1, side, side, 3)
    # Without a configuration the decoder's heads are 64 wide, and the statistics tell the grid.
    found = layout.describe(shapes, {})
    assert found.module == expected.clone(decoder=decoder.clone(heads=1))
    assert found.inputs[1].shape == (1, side, side, 3)


def test_without_statistics_diffusers_still_divides(tmp_path):
    twin = make_diffusers("mae", with_statistics=False)
    twin.save_pretrained(tmp_path / "theirs")
    back = through(tmp_path / "theirs", tmp_path, "back")
    assert_equal(twin.state_dict(), read_by_diffusers(back).state_dict())
    space = latents_of(str(tmp_path / "ours"))
    assert space.statistics is None
    pictures = images(256, count=1)
    with torch.no_grad():
        theirs = twin.encode(torch.tensor(to_nchw(pictures / np.float32(255)))).latent
    ours = jax.jit(space.store)(space.load(), pictures)
    expected = to_nhwc(theirs) * (1 + 1e-5)
    assert encoder_helpers.error(ours, expected) <= 2e-6
    assert encoder_helpers.error(ours, to_nhwc(theirs)) > 5e-6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "of a AutoencoderKL, not of an AutoencoderRAE"),
        ({"scaling_factor": 0.5}, "a scaling_factor of 0.5"),
    ],
)
def test_a_configuration_of_something_else_is_refused(config, message):
    twin = twin_of("mae")
    with pytest.raises(InputError, match=message):
        find_layout("diffusers-rae").describe(
            shapes_of(twin.state_dict()), dict(twin.config) | config
        )


def test_pixels_normalised_for_another_encoder_are_refused(tmp_path):
    tensors = twin_of("siglip2").state_dict() | {"encoder_mean": twin_of("mae").encoder_mean}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="encoder_mean is not what this model computes"):
        convert_from_torch(str(tmp_path / "model.safetensors"), str(tmp_path / "out"))


@pytest.mark.parametrize(("side", "same"), [(16, True), (8, False), (32, False)])
def test_positions_of_diffusers_are_the_authors_on_one_grid(side, same):
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.get_2d_sincos_pos_embed(64, side).numpy()
    assert np.allclose(theirs, sincos_2d((side, side), 64), atol=1e-5) == same
