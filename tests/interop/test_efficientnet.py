"""The layout of EfficientNet-Lite0: recognised, told from its relatives, and problems named."""

import functools

import pytest

from dit_jax.errors import InputError
from dit_jax.interop.engine import make_plan
from dit_jax.interop.layouts import LAYOUTS, choose_export, find_layout
from dit_jax.latents.rae.encoders import EfficientNetLite0

torch = pytest.importorskip("torch")

from tests.torch_twins.efficientnet import EfficientNetLite0 as Twin  # noqa: E402

LAYOUT = find_layout("efficientnet-lite0")


@functools.cache
def shapes():
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in Twin().state_dict().items()}


def fitting(tensors):
    return [layout.name for layout in LAYOUTS if layout.matches(tensors)]


def plan(tensors):
    found = LAYOUT.describe(tensors, {})
    return make_plan(LAYOUT.entries(found), tensors, abstract())


@functools.cache
def abstract():
    return LAYOUT.describe({}, {}).abstract()


def test_it_is_recognised():
    assert fitting(shapes()) == ["efficientnet-lite0"]
    found = LAYOUT.describe(shapes(), {})
    assert found.module == EfficientNetLite0()
    assert choose_export(found, None) is LAYOUT


def test_what_is_used_and_what_is_kept_aside():
    # The published file has 296 tensors; eleven blocks have 32 convolutions, and the stem one.
    assert len(shapes()) == 296
    made = plan(shapes())
    assert len(made.pieces) == 5 * (32 + 1)
    assert len(made.carried) == 296 - 5 * (32 + 1)
    assert {"_blocks.11._project_conv.weight", "_fc.bias"} <= made.carried.keys()


def test_its_relatives_are_others():
    """EfficientNet-B0 squeezes and excites; Lite1 is deeper."""
    assert fitting(shapes() | {"_blocks.0._se_reduce.weight": (8, 32, 1, 1)}) == []
    assert fitting(shapes() | {"_blocks.16._project_conv.weight": (320, 1152, 1, 1)}) == []


def test_problems_are_named():
    broken = shapes() | {"_blocks.3._bn1.running_var": (145,), "_blocks.2.surprise": (3,)}
    del broken["_blocks.10._bn2.running_mean"]
    with pytest.raises(InputError) as caught:
        plan(broken)
    message = str(caught.value)
    assert message.startswith("3 problems: ")
    assert "_blocks.3._bn1.running_var is (145,) and should be (144,)" in message
    assert "missing _blocks.10._bn2.running_mean (112,)" in message
    assert "unexpected _blocks.2.surprise (3,)" in message
