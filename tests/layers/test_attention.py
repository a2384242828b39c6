"""Token mixers within the models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from dit_jax import serialization
from dit_jax.attention import CLEAR, GRAT, PISA, DyDiLA, Full, LinearAttention, LiT
from dit_jax.layers.attention import SelfAttention
from dit_jax.layers.mix_ffn import MixFFN
from dit_jax.layers.mlp import Mlp
from dit_jax.models import DDT, DiT, PTDiT
from dit_jax.models.inputs import example_inputs
from dit_jax.models.pt_dit import Proxies
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, use_layout


def small(mixer, ffn, patch=4):
    return DiT(patch, 32, 2, 4, num_classes=10, attention=mixer, ffn=ffn, remat="none")


MODELS = {
    "linear": small(LinearAttention(3.0), Mlp()),
    "lit": small(LiT(), MixFFN()),
    "dydila": small(DyDiLA(), Mlp()),
    "clear": small(CLEAR(radius=3, tile=(4, 4)), Mlp(), patch=1),
    "pisa": small(PISA(0.5, tile=(4, 4)), Mlp(), patch=1),
    # Lists of 8 blocks with 4 entries, as there are 8 samples with 4 heads.
    "grat": small(GRAT((4, 2), "surround"), Mlp(), patch=1),
    "pt_dit": PTDiT(1, 32, 2, 4, num_classes=10, window=(4, 4), remat="none"),
}


def abstract(model):
    return jax.eval_shape(model.init, *example_inputs((8, 8, 4)))["params"]


def random_params(model):
    rng = np.random.default_rng(0)
    draw = lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, abstract(model))


def inputs():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 8, 8, 4)).astype(np.float32)
    return x, np.arange(8, dtype=np.float32), {"label": np.arange(8, dtype=np.int32)}


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_over_devices_is_that_of_one(name):
    model = MODELS[name]
    params, layout = random_params(model), Layout(Parallel(data=2, fsdp=2, tensor=2).mesh())

    def loss(params, *args):
        return jnp.square(model.apply({"params": params}, *args).prediction).mean()

    def divided(params, *args):
        with use_layout(layout):
            return jax.value_and_grad(loss)(params, *args)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params, *inputs())
    placed = jax.device_put(params, layout.parameters(params))
    found, found_gradient = jax.jit(divided)(placed, *jax.device_put(inputs(), layout.batch))
    np.testing.assert_allclose(found, value, rtol=1e-5)
    for path, wanted in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(wanted).all() and np.abs(wanted).max() > 0, path
    for actual, wanted in zip(jax.tree.leaves(found_gradient), jax.tree.leaves(gradient)):
        tolerance = 5e-5 * np.abs(wanted).max() + 1e-7
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_a_mixer_is_part_of_the_configuration(name):
    model = MODELS[name]
    assert serialization.from_json(json.loads(json.dumps(serialization.to_json(model)))) == model


@pytest.mark.parametrize(
    ("mixer", "option", "value"),
    [
        (LinearAttention(), "power", 3.0),
        (LiT(), "kernel", 3),
        (DyDiLA(), "projectors", 2),
        (PISA(), "density", 0.5),
    ],
)
def test_a_mixers_fields_are_options_of_the_command_line(mixer, option, value):
    args = [f"--attention.{option}", str(value)]
    model = tyro.cli(DiT, default=DiT(attention=mixer), args=args)
    assert type(model.attention) is type(mixer)
    assert getattr(model.attention, option) == value


def test_proxies_are_options_of_the_command_line():
    args = ["--proxies.window", "4", "4", "--proxies.token", "first", "--window", "4", "8"]
    model = tyro.cli(PTDiT, default=PTDiT(), args=args)
    assert model == PTDiT(proxies=Proxies((4, 4), "first"), window=(4, 8))


def test_a_mixers_parameters_are_those_of_every_layer_of_a_stack():
    mixer = abstract(MODELS["lit"])["blocks"]["layers"]["attention"]["mixer"]
    assert mixer["conv_kernel"].shape == (2, 5, 5, 1, 8)
    params = abstract(DDT(4, 32, 2, 1, 4, num_classes=10, attention=LiT()))
    for stack, depth in (("encoder", 2), ("decoder", 1)):
        mixer = params[stack]["layers"]["attention"]["mixer"]
        assert mixer["conv_kernel"].shape == (depth, 5, 5, 1, 8)


def test_a_mixer_without_parameters_leaves_the_others_as_they_are():
    shapes = [abstract(small(mixer, Mlp())) for mixer in (Full(), LinearAttention())]
    assert shapes[0] == shapes[1]


def test_a_module_may_hold_the_layer_itself():
    x = jnp.ones((1, 6, 8))
    params = SelfAttention(2, LiT()).init(jax.random.key(0), x, (2, 3))["params"]
    assert params.keys() == {"qkv", "mixer", "out"}
