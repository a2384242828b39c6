"""Layouts of transformers' vision encoders: read, written back, and told from others."""

import functools
import json
import re

import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch, convert_to_torch
from dit_jax.interop.engine import make_plan
from dit_jax.interop.layout import Found
from dit_jax.interop.layouts import LAYOUTS, choose_export, find_layout
from dit_jax.latents.rae.encoders import MAE, Dinov2, Perceptron, SigLIP
from dit_jax.layers.mlp import SwiGLU

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests.latents.rae.encoder_helpers import (  # noqa: E402
    ENCODERS,
    IN_LARGER_MODELS,
    loaded,
    randomised,
)

ALL = ENCODERS | IN_LARGER_MODELS
PARTS = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "vit.layers": "vit.encoder.layer",
}


@functools.cache
def twin_of(name):
    return randomised(ALL[name]())


def shapes_of(tensors):
    return {key: tuple(value.shape) for key, value in tensors.items()}


def assert_equal(tensors, others):
    assert tensors.keys() == others.keys()
    for key, value in tensors.items():
        assert torch.equal(value, others[key]), key


def assert_same_json(one, other):
    assert json.loads(one.read_text()) == json.loads(other.read_text())


def through(source, folder, name):
    """Converts a file or a folder, and back."""
    convert_from_torch(str(source), str(folder / "run"))
    convert_to_torch(str(folder / "run"), str(folder / name))
    return folder / name


@pytest.mark.parametrize("name", ALL)
def test_transformers_loads_the_folder_as_it_is(tmp_path, name):
    twin = twin_of(name)
    twin.save_pretrained(tmp_path / "theirs")
    folder = through(tmp_path / "theirs", tmp_path, "back")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert_equal(*(load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "back")))
    again, report = type(twin).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert_equal(twin.state_dict(), again.state_dict())
    assert_same_json(tmp_path / "theirs" / "config.json", folder / "config.json")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", ALL)
def test_a_state_dict_goes_there_and_back_bit_for_bit(tmp_path, name, suffix):
    tensors = twin_of(name).state_dict()
    torch.save(tensors, tmp_path / "model.pt")
    back = through(tmp_path / "model.pt", tmp_path, f"back{suffix}")
    assert_equal(tensors, torch.load(back) if suffix == ".pt" else load_file(back))


@pytest.mark.parametrize("name", ENCODERS)
def test_both_spellings_give_the_same_parameters(tmp_path, name):
    twin = twin_of(name)
    twin.save_pretrained(tmp_path / "theirs")
    (tmp_path / "memory").mkdir()
    torch.save(twin.state_dict(), tmp_path / "memory" / "model.pt")
    (tmp_path / "memory" / "config.json").write_text(json.dumps(twin.config.to_dict()))
    sides = []
    for source in ("theirs", "memory"):
        convert_from_torch(str(tmp_path / source), str(tmp_path / f"{source} run"))
        sides.append(loaded(tmp_path / f"{source} run"))
    assert sides[0][0] == sides[1][0]
    leaves = (np.concatenate([leaf.ravel() for leaf in _leaves(params)]) for _, params in sides)
    np.testing.assert_array_equal(*leaves)


def _leaves(params):
    import jax

    return jax.tree.leaves(params)


def test_the_decoders_keys_of_the_released_mae_come_back(tmp_path):
    """transformers 5 saves them under other names than the hub has, and reads both."""
    twin = twin_of("vit-mae with its decoder")
    released = {}
    for key, value in twin.state_dict().items():
        for part, name in PARTS.items():
            key = key.replace(part, name)
        released[key] = value
    assert "decoder.decoder_layers.0.attention.attention.query.weight" in released
    twin.save_pretrained(tmp_path / "theirs")
    save_file(released, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    folder = through(tmp_path / "theirs", tmp_path, "back")
    assert_equal(released, load_file(folder / "model.safetensors"))
    again, report = type(twin).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert_equal(twin.state_dict(), again.state_dict())


def test_siglips_image_tower_as_transformers_4_kept_it(tmp_path):
    twin = twin_of("siglip")
    twin.save_pretrained(tmp_path / "theirs")
    tensors = {f"vision_model.{key}": value for key, value in twin.state_dict().items()}
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    folder = through(tmp_path / "theirs", tmp_path, "back")
    assert_equal(tensors, load_file(folder / "model.safetensors"))
    again, report = type(twin).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert_equal(twin.state_dict(), again.state_dict())


def layout_of(name):
    return find_layout(name.split(" ")[0])


def describe(name, config=None):
    twin = twin_of(name)
    config = twin.config.to_dict() if config is None else config
    return layout_of(name).describe(shapes_of(twin.state_dict()), config)


TINY = {"patch": 4, "hidden": 32, "depth": 2, "heads": 2, "image_size": 16}
EXPECTED = {
    "dinov2": Dinov2(**TINY, ffn=Perceptron(128)),
    "dinov2 with registers": Dinov2(**TINY, ffn=Perceptron(128), registers=3),
    "dinov2 with registers and SwiGLU": Dinov2(
        **TINY | {"hidden": 24}, ffn=SwiGLU(4.0), registers=3
    ),
    "siglip": SigLIP(**TINY, ffn=Perceptron(48, approximate=True)),
    "vit-mae": MAE(**TINY, ffn=Perceptron(48)),
    "dinov2 in a classifier": Dinov2(**TINY, ffn=Perceptron(128)),
    "siglip with its text tower": SigLIP(**TINY, ffn=Perceptron(48, approximate=True)),
    "vit-mae with its decoder": MAE(**TINY, ffn=Perceptron(48)),
}


@pytest.mark.parametrize("name", ALL)
def test_the_model_is_read_off_the_tensors_and_the_configuration(name):
    found = describe(name)
    assert found.module == EXPECTED[name]
    assert found.inputs[1].shape == (1, 16, 16, 3)
    assert choose_export(found, None) is layout_of(name)


@pytest.mark.parametrize("name", ALL)
def test_each_is_recognised_by_its_layout_alone(name):
    fitting = [x.name for x in LAYOUTS if x.matches(shapes_of(twin_of(name).state_dict()))]
    assert fitting == [layout_of(name).name]


def other_models():
    few = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    sizes = few | {"image_size": 16, "patch_size": 4}
    small = sizes | {"intermediate_size": 16}
    yield transformers.ViTModel(transformers.ViTConfig(**small))
    yield transformers.DeiTModel(transformers.DeiTConfig(**small))
    yield transformers.BeitModel(transformers.BeitConfig(**small))
    yield transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**small))
    yield transformers.Siglip2VisionModel(
        transformers.Siglip2VisionConfig(**few, intermediate_size=16, num_patches=16, patch_size=4)
    )
    yield transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**small))
    yield transformers.SiglipTextModel(transformers.SiglipTextConfig(**few, vocab_size=5))


def test_other_encoders_are_not():
    models = list(other_models())
    assert len(models) == 7
    for model in models:
        fitting = [x.name for x in LAYOUTS if x.matches(shapes_of(model.state_dict()))]
        assert fitting == [], type(model)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("dinov2", {"hidden_act": "relu"}, "activation 'relu': only gelu"),
        ("siglip", {"hidden_act": "gelu"}, "activation 'gelu': only gelu_pytorch_tanh"),
        ("vit-mae", {"model_type": "vit"}, "of a 'vit' model, not vit_mae"),
    ],
)
def test_a_configuration_of_something_else_is_refused(name, config, message):
    with pytest.raises(InputError, match=message):
        describe(name, twin_of(name).config.to_dict() | config)


def test_without_a_configuration_heads_are_64_wide_and_eps_is_the_familys():
    for name in ENCODERS:
        module = describe(name, {}).module
        assert module == EXPECTED[name].clone(heads=1)
    shapes = {
        key: tuple(1152 if length == 32 else length for length in shape)
        for key, shape in shapes_of(twin_of("siglip").state_dict()).items()
    }
    assert layout_of("siglip").describe(shapes, {}).module.heads == 16


def test_a_configuration_that_leaves_heads_out_means_transformers_default():
    assert describe("siglip", {"model_type": "siglip_vision_model"}).module.heads == 12


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_without_a_configuration_gets_one(tmp_path, name):
    twin = randomised(ALL[name]())
    torch.save(twin.state_dict(), tmp_path / "model.pt")
    folder = through(tmp_path / "model.pt", tmp_path, "back")
    again, report = type(twin).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert_equal(twin.state_dict(), again.state_dict())
    assert again.config.num_attention_heads == 1


@pytest.mark.parametrize("name", IN_LARGER_MODELS)
def test_a_larger_model_without_its_configuration_is_no_folder(tmp_path, name):
    torch.save(twin_of(name).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="without its config.json"):
        through(tmp_path / "model.pt", tmp_path, "back")


def test_an_encoder_whose_last_norm_lost_its_scale_is_not_written():
    found = describe("dinov2")
    with pytest.raises(InputError, match="no layout is known for this Dinov2"):
        choose_export(Found(found.module.clone(affine=False), found.inputs), None)


def problems(name, shapes):
    """What the error for a file with these tensors lists."""
    found = layout_of(name).describe(shapes, twin_of(name).config.to_dict())
    with pytest.raises(InputError) as caught:
        make_plan(layout_of(name).entries(found), shapes, found.abstract())
    listed = str(caught.value).split(": ", 1)[1]
    return listed.split(" (--")[0].split("; ")


def is_free(key):
    """Whether nothing but the tensor itself tells its shape, as for what is kept aside."""
    return re.search(r"mask_token|register_tokens|head\.|^classifier|^text|^logit|^decoder", key)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_shape_that_is_off_by_one_is_named(name):
    shapes = shapes_of(twin_of(name).state_dict())
    for key, right in shapes.items():
        for axis in range(len(right)) if not is_free(key) else ():
            shape = tuple(n + (i == axis) for i, n in enumerate(right))
            (problem,) = problems(name, shapes | {key: shape})
            # A patch's side is told by this tensor alone, so the other side is the wrong one.
            side = len(right) == 4 and axis == 3
            expected = (*right[:2], shape[3], shape[3]) if side else right
            assert problem.startswith(f"{key} is {shape} and should be {expected}")


@pytest.mark.parametrize("name", ALL)
def test_a_missing_tensor_is_named(name):
    shapes = shapes_of(twin_of(name).state_dict())
    layout = layout_of(name)
    for key in shapes:
        rest = {k: v for k, v in shapes.items() if k != key}
        if not is_free(key) and layout.matches(rest):
            assert problems(name, rest) == [f"missing {key} {shapes[key]}"]


@pytest.mark.parametrize("name", ALL)
def test_an_unexpected_tensor_is_named(name):
    shapes = shapes_of(twin_of(name).state_dict()) | {"encoder.surprise": (3, 4)}
    assert problems(name, shapes) == ["unexpected encoder.surprise (3, 4)"]
