import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dit_jax.errors import InputError
from dit_jax.models import DiT, PTDiT, SwitchDiT
from dit_jax.models.inputs import example_inputs
from dit_jax.parallel import sharding
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, constrain, parameter_axes, use_layout
from dit_jax.presets import find_preset

MODEL = DiT(patch=4, hidden=32, depth=2, heads=4, num_classes=10)


def layout(data=2, fsdp=4):
    return Layout(Parallel(data, fsdp).mesh())


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 8, 8, 4)).astype(np.float32)
    return x, np.arange(8, dtype=np.float32), {"label": np.arange(8, dtype=np.int32)}


@pytest.fixture(scope="module")
def params(inputs):
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: (0.1 * rng.normal(size=s.shape)).astype(np.float32), shapes)


def loss(params, inputs, weight):
    prediction = MODEL.apply({"params": params}, *inputs).prediction
    return (prediction * weight).sum(), prediction


@pytest.fixture(scope="module")
def unsharded(params, inputs):
    weight = np.random.default_rng(2).normal(size=(8, 8, 8, 8)).astype(np.float32)
    (_, prediction), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        params, inputs, weight
    )
    return weight, prediction, gradient


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_a_sharded_model_equals_an_unsharded_one(data, fsdp, params, inputs, unsharded):
    weight, expected, expected_gradient = unsharded
    here = layout(data, fsdp)
    shardings = here.parameters(params)
    placed = jax.device_put(params, shardings)
    batch = jax.device_put(inputs, here.batch)

    def run(params, inputs):
        with use_layout(here):
            return jax.value_and_grad(loss, has_aux=True)(params, inputs, weight)

    (_, prediction), gradient = jax.jit(run, out_shardings=((None, here.batch), shardings))(
        placed, batch
    )
    # The same sums in another order: float32's rounding, of sums over the batch for the gradient.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(prediction, expected, rtol=0, atol=1e-5 * scale)
    for actual, wanted in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        tolerance = 2e-5 * np.abs(wanted).max() + 1e-6
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance)
    assert prediction.addressable_shards[0].data.shape == (1, 8, 8, 8)


def test_fsdp_divides_the_parameters(params):
    placed = jax.device_put(params, layout().parameters(params))
    kernel = placed["blocks"]["layers"]["attention"]["qkv"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 32 // 4, 3, 4, 8)
    whole = sum(leaf.size for leaf in jax.tree.leaves(params))
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(placed))
    biases = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim <= 2)
    # A quarter of all, but for biases and the like.
    assert held < whole / 4 + biases


def test_data_parallel_parameters_are_whole_everywhere(params):
    placed = jax.device_put(params, layout(8, 1).parameters(params))
    for leaf in jax.tree.leaves(placed):
        assert len(leaf.addressable_shards) == 8 and leaf.is_fully_replicated


@pytest.mark.parametrize(
    "model", [MODEL, DiT(), DiT(patch=4, hidden=384, heads=6, num_classes=0, learn_sigma=False)]
)
def test_every_parameter_of_dit_has_a_row_that_fits(model):
    x, t = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1)
    condition = {"label": jnp.zeros(1, jnp.int32)}
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, t, condition)["params"]
    leaves, _ = jax.tree_util.tree_flatten_with_path(shapes)
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = parameter_axes(name)
        if name.endswith("kernel") or name.endswith("embedding"):
            assert len(axes) == leaf.ndim, name
            # The axis that is divided, for every large array, is the model's width.
            assert leaf.shape[axes.index("embed")] == model.hidden, name
        assert (axes[0] == "layers") == name.startswith("blocks/"), name
    layout().parameters(shapes)  # All sizes divide.


@pytest.mark.parametrize(
    "path",
    ["blocks/layers/route/kernel", "patch_embed/kernels", "my_patch_embed/kernel", "scales", ""],
)
def test_an_unknown_parameter_is_an_error(path):
    with pytest.raises(InputError, match=f"'{path}'"):
        parameter_axes(path)


def test_an_unknown_parameter_in_a_tree_is_named_by_its_path():
    tree = {"blocks": {"layers": {"new": {"weight": jax.ShapeDtypeStruct((2, 8), jnp.float32)}}}}
    with pytest.raises(InputError, match="blocks/layers/new/weight"):
        layout().parameters(tree)


def test_shardings_follow_the_rules():
    here = layout()
    assert here.replicated.spec == PartitionSpec()
    assert here.batch.spec == PartitionSpec(("data", "fsdp", "expert"))
    spec = here.sharding(("batch", "tokens", None), (8, 5, 3)).spec
    assert spec == PartitionSpec(("data", "fsdp", "expert"), ("sequence",), None)
    assert here.sharding((), ()).is_fully_replicated
    assert here.ways("batch") == math.prod(here.mesh.devices.shape) == 8
    assert here.ways("embed") == 4 and here.ways("tokens") == 1
    assert here.axes("batch") == ("data", "fsdp") and here.axes("experts") == ()


def test_two_axes_on_one_mesh_axis_are_an_error():
    with pytest.raises(InputError, match=r"'batch' and 'embed'.*both land on mesh axis 'fsdp'"):
        layout().sharding(("batch", "embed"), (8, 32))


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (("batch", "tokens"), (12, 4), r"'batch' of size 12 .* 8 devices \(data x fsdp\)"),
        (("embed",), (30,), r"'embed' of size 30 .* 4 devices \(fsdp\)"),
    ],
)
def test_a_size_that_does_not_divide_is_an_error(axes, shape, message):
    with pytest.raises(InputError, match=message):
        layout().sharding(axes, shape)


def test_a_width_that_does_not_divide_is_an_error():
    tree = {"patch_embed": {"kernel": jax.ShapeDtypeStruct((16, 36), jnp.float32)}}
    with pytest.raises(InputError, match="size 36"):
        layout(1, 8).parameters(tree)


def test_constrain_acts_within_use_layout_only():
    x = jnp.ones((8, 4, 2))
    here = layout()
    assert constrain(x, "batch", "tokens", "channels") is x

    def run(x):
        with use_layout(here):
            return constrain(x + 1, "batch", "tokens", "channels")

    y = jax.jit(run)(x)
    assert y.sharding.is_equivalent_to(here.batch, 3)
    np.testing.assert_array_equal(y, x + 1)
    assert constrain(x, "batch", "tokens", "channels") is x


def test_use_layout_ends_with_an_error_and_nests():
    inner, outer = layout(8, 1), layout(2, 4)
    x = jnp.ones((3, 1))  # No batch of either: constrain says so, where it acts.
    with use_layout(outer):
        with pytest.raises(ZeroDivisionError), use_layout(inner):
            raise ZeroDivisionError
        with pytest.raises(InputError, match="data x fsdp"):
            constrain(x, "batch", None)
    assert constrain(x, "batch", None) is x


def test_rules_name_mesh_axes():
    axes = set(layout().mesh.axis_names)
    assert all(set(mesh_axes) <= axes for mesh_axes in sharding.RULES.values())


FAMILIES = ("DiT-S/8", "LightningDiT-B/1", "DDT-B/2", "DiT-MoE-XL/2-8E2A", "ProMoE-S")


UNNAMED = {"PT-DiT": PTDiT(), "SwitchDiT": SwitchDiT()}


@pytest.mark.parametrize("name", [*FAMILIES, *UNNAMED])
def test_every_family_can_be_laid_out(name):
    """A parameter without a row would only be found when somebody trains that model."""
    model = UNNAMED[name] if name in UNNAMED else find_preset(name).model
    abstract = jax.eval_shape(model.init, *example_inputs((32, 32, 4)))["params"]
    shardings = Layout(Parallel(fsdp=4, tensor=2).mesh()).parameters(abstract)
    divided = [s for s in jax.tree.leaves(shardings) if not s.is_fully_replicated]
    assert len(divided) > 10
