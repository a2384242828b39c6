import functools

import jax
import pytest
from jax.sharding import AbstractMesh

import dit_jax
from dit_jax.errors import InputError
from dit_jax.flops import forward_flops
from dit_jax.models import DiT
from dit_jax.models.inputs import example_inputs
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, place
from dit_jax.presets import create_model, find_preset
from dit_jax.sizes import count_parameters

FAMILIES = ("DiT-S/4", "DDT-B/2", "DiT-DH-S", "DiT-MoE-S/2-8E2A", "ProMoE-S", "LightningDiT-B/2")


@functools.cache
def summarise(name):
    return dit_jax.summary(create_model(name), find_preset(name).shape)


def row(summary, name):
    (found,) = [row for row in summary.rows if row.name == name]
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_row_is_the_whole_model(name):
    model, shape = create_model(name), find_preset(name).shape
    total = summarise(name).rows[0]
    assert total.flops == forward_flops(model, shape)
    assert total.parameters == count_parameters(model, shape) - model.frozen_parameters(shape)


def test_is_text_in_a_notebook_too(monkeypatch):
    expected = str(summarise("DiT-S/4"))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(summarise("DiT-S/4")) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_modules_add_up_to_what_they_are_in(name):
    rows = summarise(name).rows
    for i, outer in enumerate(rows):
        inside = []
        for inner in rows[i + 1 :]:
            if inner.depth <= outer.depth:
                break
            inside += [inner] if inner.depth == outer.depth + 1 else []
        assert sum(inner.flops for inner in inside) <= outer.flops
        if inside and not outer.array:
            assert sum(inner.parameters for inner in inside) == outer.parameters


def test_flops_lie_where_they_are_spent():
    depth, tokens, width = 12, 64, 384
    summary = summarise("DiT-S/4")
    projections = 2 * depth * tokens * width * 4 * width
    assert row(summary, "ffn").flops == 2 * projections
    assert row(summary, "attention").flops == projections + 2 * depth * 2 * tokens * tokens * width
    assert row(summary, "label_embed/table").flops == 0


def test_modules_come_in_the_order_of_use():
    names = [row.name for row in summarise("DiT-S/4").rows if row.depth == 1]
    assert names == ["label_embed/table", "patch_embed", "time_embed", "blocks/layers", "final"]


def test_experts_are_counted_as_a_token_meets_them():
    text = str(summarise("DiT-MoE-S/2-8E2A"))
    assert "199,307,552 parameters, 98,304 of them" in text
    assert "71,905,568 are active" in text


def test_a_mesh_divides_arrays():
    model = DiT(patch=2, hidden=64, depth=3, heads=4, num_classes=10)
    alone = dit_jax.summary(model, (8, 8, 4))
    over = dit_jax.summary(model, (8, 8, 4), Parallel(data=1, fsdp=4, tensor=2).abstract())
    assert row(over, "qkv").array == "3 x 64/fsdp x 3 x 4/tensor x 16"
    assert row(alone, "qkv").array == "3 x 64 x 3 x 4 x 16"
    assert "devices" not in str(alone)
    assert "Each of 8 devices holds" in str(over)


def test_real_devices_hold_what_is_said():
    model = DiT(patch=2, hidden=64, depth=3, heads=4, num_classes=10)
    mesh = Parallel(data=2, fsdp=4).mesh()
    text = str(dit_jax.summary(model, (8, 8, 4), mesh))
    params = model.init(*example_inputs((8, 8, 4)))["params"]
    placed = jax.tree.leaves(place(params, Layout(mesh).parameters(params)))
    held = sum(array.addressable_shards[0].data.size for array in placed)
    assert f"Each of 8 devices holds {held:,} parameters" in text


def test_a_mesh_of_other_axes_is_refused():
    model = DiT(patch=2, hidden=64, depth=1, heads=4)
    with pytest.raises(InputError, match="a mesh of axes x, y is none of dit_jax's"):
        dit_jax.summary(model, mesh=AbstractMesh((2, 2), ("x", "y")))


def test_a_notebook_shows_a_table():
    summary = summarise("DiT-S/4")
    page = summary._repr_html_()
    assert page.count("<tr>") == len(summary.rows) + 1
    for shown in summary.rows:
        assert f">{shown.name}<" in page
        assert f">{shown.parameters:,}<" in page
    assert repr(summary) == str(summary)
