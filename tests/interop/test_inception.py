"""The layout of FID's Inception-v3, told from torchvision's, and files named by their content."""

import functools
import hashlib

import pytest

from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch
from dit_jax.interop.engine import make_plan
from dit_jax.interop.files import open_state_dict
from dit_jax.interop.layouts import LAYOUTS, choose_export, find_layout
from dit_jax.metrics.inception import InceptionV3

torch = pytest.importorskip("torch")

from tests.torch_twins.inception import InceptionV3 as Twin  # noqa: E402

LAYOUT = find_layout("inception")


@functools.cache
def shapes():
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in Twin().state_dict().items()}


def plan(tensors):
    found = LAYOUT.describe(tensors, {})
    return make_plan(LAYOUT.entries(found), tensors, found.abstract())


def test_it_is_recognised():
    assert [layout.name for layout in LAYOUTS if layout.matches(shapes())] == ["inception"]
    found = LAYOUT.describe(shapes(), {})
    assert found.module == InceptionV3()
    assert choose_export(found, None) is LAYOUT


def test_what_is_used_and_what_is_kept_aside():
    # 94 convolutions with their batch norms, and the classifier.
    assert len(shapes()) == 94 * 6 + 2
    made = plan(shapes())
    assert len(made.pieces) == 94 * 5 + 1
    assert len(made.carried) == 94 + 1
    assert "fc.bias" in made.carried


def test_torchvisions_own_network_is_refused():
    theirs = shapes() | {
        "fc.weight": (1000, 2048),
        "fc.bias": (1000,),
        "AuxLogits.fc.weight": (1000, 768),
    }
    with pytest.raises(InputError, match="1000 classes and not 1008: torchvision's own"):
        LAYOUT.describe(theirs, {})


def test_problems_are_named():
    broken = shapes() | {
        "Mixed_6d.branch7x7_2.conv.weight": (160, 160, 7, 1),
        "Mixed_5b.branch9x9.conv.weight": (3,),
    }
    del broken["Mixed_7c.branch3x3dbl_3a.bn.running_var"]
    with pytest.raises(InputError) as caught:
        plan(broken)
    message = str(caught.value)
    assert message.startswith("3 problems: ")
    assert "Mixed_6d.branch7x7_2.conv.weight is (160, 160, 7, 1) and should be (160," in message
    assert "missing Mixed_7c.branch3x3dbl_3a.bn.running_var (384,)" in message
    assert "unexpected Mixed_5b.branch9x9.conv.weight (3,)" in message


def test_a_file_named_by_its_content_is_checked(tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "model.pth")
    found = hashlib.sha256((tmp_path / "model.pth").read_bytes()).hexdigest()[:8]
    wrong = (tmp_path / "model.pth").rename(tmp_path / "net-6726825d.pth")
    with pytest.raises(InputError) as caught:
        convert_from_torch(str(wrong), str(tmp_path / "out"))
    message = str(caught.value)
    assert f"begins with {found}, not with the 6726825d in its name" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["run-20261121.pth", "net-6726825d-mine.pth", "net-6726825d0.pth"])
def test_other_names_promise_nothing(tmp_path, name):
    torch.save({"weight": torch.ones(3)}, tmp_path / name)
    assert open_state_dict(tmp_path / name).shapes == {"weight": (3,)}


def test_the_right_name_is_taken(tmp_path):
    # A file whose digest begins with eight digits alone is not checked, so that one must not be.
    for number in range(9):
        torch.save({"weight": torch.full((3,), float(number))}, tmp_path / "model.pth")
        found = hashlib.sha256((tmp_path / "model.pth").read_bytes()).hexdigest()[:8]
        if not found.isdigit():
            break
    named = (tmp_path / "model.pth").rename(tmp_path / f"net-{found}.pth")
    assert open_state_dict(named).shapes == {"weight": (3,)}
