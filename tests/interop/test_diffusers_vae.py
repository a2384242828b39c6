import functools
import json

import jax
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.interop.engine import by_path, make_plan, to_torch
from dit_jax.interop.layout import Found
from dit_jax.interop.writing import write_state_dict
from dit_jax.latents.vae import AutoencoderKL
from tests.latents.vae.vae_helpers import CONFIG, LAYOUT, convert, describe, make_twin, state_dict

pytest.importorskip("torch")
pytest.importorskip("diffusers")

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_names(tensors):
    """The same tensors under the attention's names of 2022."""
    renamed = {}
    for key, value in tensors.items():
        for new, old in OLD_NAMES.items():
            key = key.replace(f".{new}.", f".{old}.")
        renamed[key] = value
    return renamed


def settings(model):
    """A model's configuration as its file has it, without versions and paths."""
    return json.loads(json.dumps({k: v for k, v in model.config.items() if k[0] != "_"}))


def shapes_of(tensors):
    return {key: value.shape for key, value in tensors.items()}


def back(found, params):
    """Tensors of the state dict that parameters make."""
    leaves = by_path(params)
    dtypes = {path: np.dtype(leaf.dtype) for path, leaf in leaves.items()}
    read = lambda path, layer: np.asarray(leaves[path])  # noqa: E731
    return list(to_torch(LAYOUT.entries(found), found.abstract(), dtypes, read))


@pytest.fixture(scope="module")
def twin():
    return make_twin()


@pytest.fixture(scope="module")
def tensors(twin):
    return state_dict(twin)


@pytest.mark.parametrize("rename", [dict, old_names], ids=["names of today", "names of 2022"])
def test_the_round_trip_is_equal_to_the_bit(tensors, rename):
    tensors = rename(tensors)
    found = LAYOUT.describe(shapes_of(tensors), CONFIG)
    written = {tensor.key: tensor.make() for tensor in back(found, convert(tensors, found))}
    assert written.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(written[key], value, err_msg=key)


def test_both_names_of_the_attention_give_the_same_parameters(tensors):
    found = LAYOUT.describe(shapes_of(tensors), CONFIG)
    old = LAYOUT.describe(shapes_of(old_names(tensors)), CONFIG)
    assert old.module == found.module
    jax.tree.map(
        np.testing.assert_array_equal, convert(tensors, found), convert(old_names(tensors), old)
    )


def test_a_model_of_unknown_origin_is_written_with_names_of_today(tensors):
    found = LAYOUT.describe(shapes_of(old_names(tensors)), CONFIG)
    plain = Found(found.module, found.inputs)
    assert {tensor.key for tensor in back(plain, found.abstract())} == tensors.keys()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, AutoencoderKL((32, 64), 1, 4, 3, 8)),
        (
            {"block_out_channels": (16, 32, 32), "layers_per_block": 2, "norm_num_groups": 4},
            AutoencoderKL((16, 32, 32), 2, 4, 3, 4),
        ),
        (
            {"latent_channels": 6, "use_quant_conv": False, "use_post_quant_conv": False},
            AutoencoderKL((32, 64), 1, 6, 3, 8, use_quant_conv=False),
        ),
        ({"in_channels": 1, "out_channels": 1}, AutoencoderKL((32, 64), 1, 4, 1, 8)),
    ],
)
def test_the_model_is_read_off_the_tensors(changes, expected):
    twin = make_twin(**changes)
    assert describe(twin).module == expected
    assert LAYOUT.exports(describe(twin))


def test_without_a_configuration_there_are_32_groups(tensors):
    module = LAYOUT.describe(shapes_of(tensors), {}).module
    assert module == AutoencoderKL((32, 64), 1, 4, 3, 32)


@pytest.mark.parametrize("rename", [dict, old_names])
def test_is_recognised(tensors, rename):
    assert LAYOUT.matches(shapes_of(rename(tensors)))


def other_models():
    import diffusers

    down, up = ("DownEncoderBlock2D",), ("UpDecoderBlock2D",)
    few = {"block_out_channels": (32,), "down_block_types": down}
    yield diffusers.VQModel(**few, up_block_types=up)
    yield diffusers.AutoencoderKLFlux2(**few, up_block_types=up)
    yield diffusers.AutoencoderKLTemporalDecoder(**few)
    yield diffusers.AsymmetricAutoencoderKL(
        down_block_types=down,
        down_block_out_channels=(32,),
        up_block_types=up,
        up_block_out_channels=(32,),
    )
    yield diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    )
    yield diffusers.UNet2DModel(
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), block_out_channels=(32,)
    )


def test_other_autoencoders_and_other_models_are_not():
    models = list(other_models())
    assert len(models) == 6
    for model in models:
        assert not LAYOUT.matches(shapes_of(model.state_dict())), type(model)


@functools.cache
def abstract(module):
    return Found(module, (jax.random.key(0), np.zeros((1, 2, 2, 3), np.float32))).abstract()


def problems(shapes):
    """What the error for a file with these tensors lists."""
    found = LAYOUT.describe(shapes, CONFIG)
    with pytest.raises(InputError) as caught:
        make_plan(LAYOUT.entries(found), shapes, abstract(found.module))
    listed = str(caught.value).split(": ", 1)[1]
    return listed.split(" (--")[0].split("; ")


def test_a_missing_tensor_is_named(tensors):
    shapes = shapes_of(tensors)
    for key, shape in list(shapes.items())[::7]:  # All 124 pass, in a few seconds.
        rest = {k: v for k, v in shapes.items() if k != key}
        assert problems(rest) == [f"missing {key} {shape}"]


def test_an_unexpected_tensor_is_named(tensors):
    shapes = shapes_of(tensors) | {"encoder.surprise.weight": (3, 4)}
    assert problems(shapes) == ["unexpected encoder.surprise.weight (3, 4)"]


@pytest.mark.parametrize(
    "key",
    [
        "encoder.conv_in.weight",
        "encoder.down_blocks.0.resnets.0.conv1.weight",
        "encoder.down_blocks.1.resnets.0.norm2.weight",
        "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
        "encoder.down_blocks.0.downsamplers.0.conv.weight",
        "encoder.mid_block.attentions.0.to_q.weight",
        "encoder.mid_block.attentions.0.to_v.bias",
        "encoder.conv_out.weight",
        "decoder.conv_in.weight",
        "decoder.mid_block.attentions.0.to_out.0.weight",
        "decoder.up_blocks.0.upsamplers.0.conv.bias",
        "decoder.up_blocks.1.resnets.1.conv2.weight",
        "decoder.conv_out.bias",
        "quant_conv.weight",
        "post_quant_conv.bias",
    ],
)
@pytest.mark.parametrize("axis", [0, -1])
def test_a_shape_that_is_off_by_one_is_named(tensors, key, axis):
    shape = list(tensors[key].shape)
    shape[axis] += 1
    (problem,) = problems(shapes_of(tensors) | {key: tuple(shape)})
    assert problem.startswith(f"{key} is {tuple(shape)} and should be {tensors[key].shape}")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "AsymmetricAutoencoderKL"}, "AsymmetricAutoencoderKL, not of an Auto"),
        ({"act_fn": "gelu"}, "activation 'gelu': only silu"),
    ],
)
def test_a_configuration_of_something_else_is_refused(tensors, config, message):
    with pytest.raises(InputError, match=message):
        LAYOUT.describe(shapes_of(tensors), CONFIG | config)


def test_a_file_without_its_inner_levels_is_refused(tensors):
    shapes = {k: v for k, v in shapes_of(tensors).items() if "down_blocks.1.resnets" not in k}
    shapes["encoder.down_blocks.1.surprise"] = (1,)
    with pytest.raises(InputError, match="no whole file"):
        LAYOUT.describe(shapes, CONFIG)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "latent_channels": 16,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "force_upcast": True,
        },
    ],
    ids=["stable diffusion", "stable diffusion 3"],
)
@pytest.mark.parametrize("rename", [dict, old_names], ids=["names of today", "names of 2022"])
def test_diffusers_loads_the_folder_as_it_is(tmp_path, changes, rename):
    from diffusers import AutoencoderKL as Twin

    twin = make_twin(**changes)
    tensors = rename(state_dict(twin))
    found = LAYOUT.describe(shapes_of(tensors), dict(twin.config))
    folder = tmp_path / "vae"
    write_state_dict(str(folder), back(found, convert(tensors, found)), LAYOUT, found, {})
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    loaded, report = Twin.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    for key, value in state_dict(loaded).items():
        np.testing.assert_array_equal(value, twin.state_dict()[key], err_msg=key)
    assert settings(loaded) == settings(twin)


def test_the_default_configuration_is_the_released_ones():
    """The file beside sd-vae-ft-mse, but for version numbers and entries that diffusers adds."""
    config = LAYOUT.write_config(Found(AutoencoderKL(), ()), lambda key: None)
    released = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    assert released.items() <= config.items()
    assert config["scaling_factor"] == 0.18215
