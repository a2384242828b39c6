"""Layouts of what a decoder's training looks through: DINO's backbone and LPIPS."""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch, convert_to_torch
from dit_jax.interop.engine import make_plan
from dit_jax.interop.files import open_state_dict
from dit_jax.interop.layout import Found
from dit_jax.interop.layouts import LAYOUTS, choose_export, find_layout
from dit_jax.latents.rae.encoders import Perceptron
from dit_jax.latents.rae.encoders.dino import Dino
from dit_jax.training.reconstruction.perceptual import VGG16

torch = pytest.importorskip("torch")

from tests.interop.parity import check_round_trip  # noqa: E402
from tests.latents.rae.encoder_helpers import loaded  # noqa: E402
from tests.training.reconstruction import pairs  # noqa: E402

TWINS = {
    "dino": functools.cache(pairs.dino_twin),
    "lpips": functools.cache(pairs.lpips_twin),
}
EXPECTED = {
    "dino": Dino(
        patch=4,
        hidden=128,
        depth=3,
        heads=2,
        ffn=Perceptron(192, approximate=True),
        image_size=16,
        tapped=(0, 1, 2),
    ),
    "lpips": VGG16(pairs.WIDTHS),
}


def shapes_of(tensors):
    return {key: tuple(value.shape) for key, value in tensors.items()}


def twin_shapes(name):
    return shapes_of(TWINS[name]().state_dict())


def full_size(name):
    with torch.device("meta"):
        return shapes_of((pairs.Dino if name == "dino" else pairs.LPIPS)().state_dict())


@pytest.mark.parametrize("name", TWINS)
def test_it_goes_there_and_back_bit_for_bit(tmp_path, name):
    pairs.through_conversion(TWINS[name](), tmp_path)
    for suffix in (".pt", ".safetensors"):
        check_round_trip(tmp_path, TWINS[name](), f"back{suffix}")


@pytest.mark.parametrize("name", TWINS)
def test_it_is_recognised_and_read_off_the_shapes(name):
    fitting = [layout for layout in LAYOUTS if layout.matches(twin_shapes(name))]
    assert [layout.name for layout in fitting] == [name]
    found = fitting[0].describe(twin_shapes(name), {})
    assert found.module == EXPECTED[name]
    assert choose_export(found, None) is fitting[0]


@pytest.mark.parametrize(("name", "module"), [("dino", Dino()), ("lpips", VGG16())])
def test_released_sizes_are_the_defaults(name, module):
    layout, shapes = find_layout(name), full_size(name)
    if name == "lpips":
        shapes["classifier.6.bias"] = (1000,)
    found = layout.describe(shapes, {})
    assert found.module == module
    plan = make_plan(layout.entries(found), shapes, found.abstract())
    aside = {"dino": ["norm.bias", "norm.weight"], "lpips": ["classifier.6.bias"]}
    assert sorted(plan.carried) == aside[name]


def test_the_teacher_of_a_whole_training_is_taken(tmp_path):
    """As DINO's own script saves it: the student in its wrapper, and what else it needs."""
    twin = TWINS["dino"]().state_dict()
    teacher = {f"backbone.{key}": value for key, value in twin.items()}
    teacher["head.mlp.0.weight"] = torch.ones(3, 128)
    file = {
        "student": {f"module.{key}": 2 * value for key, value in teacher.items()},
        "teacher": teacher,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small"),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }
    torch.save(file, tmp_path / "checkpoint.pth")
    report = convert_from_torch(str(tmp_path / "checkpoint.pth"), str(tmp_path / "run"))
    assert report[0].startswith("checkpoint.pth, its 'teacher' weights (not student), read as dino")
    convert_to_torch(str(tmp_path / "run"), str(tmp_path / "back.pt"))
    back = torch.load(tmp_path / "back.pt")
    assert back.keys() == teacher.keys()
    assert all(torch.equal(back[key], value) for key, value in teacher.items())
    student = open_state_dict(tmp_path / "checkpoint.pth", "student").tensors
    assert student.keys() == teacher.keys()
    assert student["backbone.cls_token"].read()[0, 0, 0] == 2 * twin["cls_token"][0, 0, 0]


def test_the_two_published_files_are_joined(tmp_path):
    """As the documentation has it; one of them alone is told what it lacks."""
    joined = TWINS["lpips"]().state_dict()
    linear = {key: value for key, value in joined.items() if key.startswith("lin")}
    network = {key: value for key, value in joined.items() if key not in linear}
    assert len(linear) == 5 and len(network) == 26
    torch.save(linear, tmp_path / "vgg.pth")
    torch.save(network, tmp_path / "vgg16.pth")
    for name, lacking in (("vgg", "missing features.0.weight"), ("vgg16", "missing lin0.model.1")):
        with pytest.raises(InputError, match=lacking):
            convert_from_torch(str(tmp_path / f"{name}.pth"), str(tmp_path / "run"))
    both = torch.load(tmp_path / "vgg16.pth") | torch.load(tmp_path / "vgg.pth")
    torch.save(both, tmp_path / "lpips.pth")
    convert_from_torch(str(tmp_path / "lpips.pth"), str(tmp_path / "run"))
    module, params = loaded(tmp_path / "run")
    assert module == EXPECTED["lpips"]
    np.testing.assert_array_equal(params["weight_2"], linear["lin2.model.1.weight"][0, :, 0, 0])


@functools.cache
def abstract(module, side):
    return Found(module, (jax.random.key(0), jnp.zeros((1, side, side, 3)))).abstract()


def problems(name, shapes):
    layout = find_layout(name)
    found = layout.describe(shapes, {})
    with pytest.raises(InputError) as caught:
        side = found.inputs[1].shape[1]
        make_plan(layout.entries(found), shapes, abstract(found.module, side))
    return str(caught.value).split(": ", 1)[1].split(" (--")[0].split("; ")


@pytest.mark.parametrize("name", TWINS)
def test_a_shape_that_is_off_by_one_is_named(name):
    for key, right in twin_shapes(name).items():
        for axis in range(len(right)) if not key.startswith("norm.") else ():
            shape = tuple(n + (i == axis) for i, n in enumerate(right))
            (problem,) = problems(name, twin_shapes(name) | {key: shape})
            assert problem.startswith(f"{key} is {shape} and should be ")


@pytest.mark.parametrize("name", TWINS)
def test_a_missing_tensor_is_named(name):
    right = twin_shapes(name)
    for key in right:
        rest = {k: v for k, v in right.items() if k != key}
        if not key.startswith("norm.") and find_layout(name).matches(rest):
            assert problems(name, rest) == [f"missing {key} {right[key]}"]


@pytest.mark.parametrize("name", TWINS)
def test_an_unexpected_tensor_is_named(name):
    surprise = {"blocks.0.surprise": (3, 4)}
    assert problems(name, twin_shapes(name) | surprise) == ["unexpected blocks.0.surprise (3, 4)"]


@pytest.mark.parametrize("more", ["mask_token", "blocks.0.ls1.gamma", "head.weight", "dist_token"])
def test_other_transformers_are_not_dino(more):
    shapes = twin_shapes("dino") | {more: (128,)}
    assert [layout.name for layout in LAYOUTS if layout.matches(shapes)] == []


def vgg(counts, step):
    """Convolutions of a VGG of torchvision: every layer takes `step` places, a pooling one."""
    shapes, place = {}, 0
    for count in counts:
        for _ in range(count):
            shapes[f"features.{place}.weight"] = (8, 8, 3, 3)
            place += step
        place += 1
    return shapes


def test_other_convolutions_are_not_vgg_16():
    sixteen, nineteen = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
    assert find_layout("lpips").matches(vgg(sixteen, 2))
    # VGG-16 and 19 with batch norm, then VGG-11, 13 and 19.
    others = [(sixteen, 3), (nineteen, 3), ((1, 1, 2, 2, 2), 2), (5 * (2,), 2), (nineteen, 2)]
    for counts, step in others:
        assert not find_layout("lpips").matches(vgg(counts, step))
