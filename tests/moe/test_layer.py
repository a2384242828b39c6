"""The layer, models that have it, and their training over devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.diffusion import Flow
from dit_jax.errors import InputError
from dit_jax.latents import Pixels
from dit_jax.layers.block import Alternate
from dit_jax.layers.context import Context
from dit_jax.layers.mlp import Mlp
from dit_jax.layers.stack import Stack
from dit_jax.models import DiT, dit_moe, promoe
from dit_jax.models.inputs import example_inputs
from dit_jax.moe import MlpExperts, MoE, Routing, SwiGLUExperts
from dit_jax.moe.dispatch import Capacity, Ragged
from dit_jax.moe.layer import load_metrics
from dit_jax.moe.routers import DiTMoERouter, ProMoERouter
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.presets import PRESETS, find_preset
from dit_jax.sizes import count_active, count_parameters
from dit_jax.training.state import new_state, state_shardings
from dit_jax.training.step import make_loss, make_step

# Metrics of the load.


def metrics_of(experts, count):
    experts = jnp.asarray(experts, jnp.int32)
    metrics = load_metrics(Routing(jnp.ones(experts.shape), experts, None, count))
    return {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("experts", "count", "max_load", "entropy"),
    [
        ([[0, 1, 2, 3], [3, 2, 1, 0]], 4, 1.0, 1.0),
        ([[2, 2, 2, 2]], 4, 4.0, 0.0),
        ([[0, 0, 0, 1]], 4, 3.0, -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(4)),
        # Slots that are not used, number 4, are no load.
        ([[0, 1, 4, 4], [2, 3, 4, 4]], 4, 1.0, 1.0),
        ([[4, 4]], 4, 0.0, 0.0),
        ([[0, 0]], 1, 1.0, 0.0),
    ],
)
def test_the_metrics_are_the_largest_load_and_the_entropy(experts, count, max_load, entropy):
    expected = {"moe_max_load": max_load, "moe_entropy": entropy}
    assert metrics_of(experts, count) == pytest.approx(expected, abs=1e-6)


def context_of(x):
    vector = jnp.zeros((len(x), x.shape[-1]))
    return Context(
        vector, jnp.zeros(len(x)), vector, jnp.ones(len(x), bool), (1, x.shape[1]), train=True
    )


def random_params(module, x, seed=0):
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, context_of(x)), x)
    rng = np.random.default_rng(seed)
    draw = lambda s: (0.5 * rng.normal(size=s.shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes["params"])


@pytest.mark.parametrize(
    ("tokens", "max_load", "entropy", "dropped"),
    [
        (np.eye(4), 1.0, 1.0, 0.0),
        # Places for one slot an expert; one expert is offered four.
        (np.tile(np.eye(4)[2], (4, 1)), 4.0, 0.0, 0.75),
        (np.eye(4)[[0, 0, 0, 1]], 3.0, 0.40563906, 0.5),
    ],
)
def test_a_layer_reports_its_load_and_what_it_dropped(tokens, max_load, entropy, dropped):
    x = jnp.asarray(3 * np.stack([tokens, tokens]), jnp.float32)
    layer = MoE(DiTMoERouter(4, top_k=1), MlpExperts(ratio=1.0), dispatch=Capacity(1.0))
    params = random_params(layer, x)
    params["router"]["kernel"] = np.eye(4, dtype=np.float32)
    for dispatch, share in ((Capacity(1.0), dropped), (Ragged(), 0.0)):
        y, aux = layer.clone(dispatch=dispatch).apply({"params": params}, x, context_of(x))
        expected = {"moe_max_load": max_load, "moe_entropy": entropy, "moe_dropped": share}
        found = {name: float(value) for name, value in aux["metrics"].items()}
        assert found == pytest.approx(expected, abs=1e-6)
    assert aux["losses"].keys() == {"balance"} and aux["routing"].count == 4
    assert y.shape == x.shape


def test_the_shared_layer_is_added_for_every_token():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    layer = MoE(DiTMoERouter(4, top_k=2), SwiGLUExperts(ratio=1.0), Mlp(ratio=2.0))
    params = random_params(layer, x)
    y, _ = layer.apply({"params": params}, x, context_of(x))
    alone = layer.clone(shared=None)
    without = {name: params[name] for name in ("router", "experts")}
    routed, _ = alone.apply({"params": without}, x, context_of(x))
    shared, _ = Mlp(ratio=2.0).apply({"params": params["shared"]}, x, context_of(x))
    np.testing.assert_allclose(y, routed + shared, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("experts", "shapes"),
    [
        (MlpExperts(ratio=2.0), {"fc1": (32, 64), "fc2": (64, 32)}),
        (SwiGLUExperts(ratio=2.0), {"gate_value": (32, 2, 64), "out": (64, 32)}),
    ],
)
def test_experts_start_as_dense_layers_do(experts, shapes):
    """Xavier uniform of each expert's matrix by itself, all different; biases zero."""
    params = experts.init_with_output(jax.random.key(0), 3, 32)[0]
    for name, shape in shapes.items():
        kernel = np.asarray(params[name]["kernel"])
        assert kernel.shape == (3, *shape)
        limit = np.sqrt(6 / (32 + 64))
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(axis=(1, -1)), limit / np.sqrt(3), rtol=0.05)
        assert not np.allclose(kernel[0], kernel[1])
        np.testing.assert_array_equal(params[name].get("bias", 0), 0)


# Channel mixers that take turns.

SHAPE = (8, 8, 1)
FIELDS = {"patch": 4, "num_classes": 10}


@pytest.mark.parametrize("depth", [1, 3])
def test_a_depth_that_kinds_cannot_share_is_an_error(depth):
    model = promoe(depth, 16, 2, **FIELDS)
    with pytest.raises(InputError, match=f"depth of {depth} .* 2 channel mixers"):
        jax.eval_shape(model.init, *example_inputs(SHAPE))


def test_kinds_take_turns():
    """First block first kind: the stack is its blocks one by one, and aux is in their order."""
    mixtures = [MoE(DiTMoERouter(experts=count), MlpExperts(ratio=1.0)) for count in (3, 3)]
    ffn = Alternate((Mlp(ratio=1.0), *mixtures))
    model = DiT(hidden=16, depth=6, heads=2, ffn=ffn, **FIELDS)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, *SHAPE)), jnp.float32)
    inputs = x, jnp.array([0.2, 0.7]), {"label": jnp.array([3, 10])}
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda s: (0.3 * rng.normal(size=s.shape)).astype(np.float32), shapes)
    layers = params["blocks"]["layers"]  # A group of three blocks is what is stacked.
    assert ["router" in layers[f"blocks_{i}"]["ffn"] for i in range(3)] == [False, True, True]

    seen = {}

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, Stack):
            seen["inputs"], seen["outputs"] = args, result
        return result

    @jax.jit
    def stacked_and_unrolled(params):
        with nn.intercept_methods(record):
            output = model.apply({"params": params}, *inputs)
        (tokens, context, *_), reports = seen["inputs"], []
        for layer in range(6):
            group, kind = divmod(layer, 3)
            own = params["blocks"]["layers"][f"blocks_{kind}"]
            own = jax.tree.map(lambda leaf, group=group: leaf[group], own)
            block = model.clone(ffn=ffn.mixers[kind]).block()
            tokens, aux = block.apply({"params": own}, tokens, context)
            reports += [aux] if aux else []
        return output.aux, seen["outputs"][0], reports, tokens

    aux, tokens, reports, expected_tokens = stacked_and_unrolled(params)
    np.testing.assert_allclose(tokens, expected_tokens, rtol=1e-4, atol=1e-5)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *reports)
    assert aux["routing"].experts.shape == (4, 2, 8)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), aux, expected)


# Training over devices.

MODELS = {
    "dit_moe": dit_moe(2, 16, 2, experts=8, **FIELDS),
    # Seven experts with a prototype and the unconditional one: these divide over devices.
    "promoe": promoe(2, 16, 2, router=ProMoERouter(experts=7), label_dropout=0.4, **FIELDS),
}
LOSSES = {"dit_moe": "balance_loss", "promoe": "contrast_loss"}
# Adam would divide rounding by itself where gradients are small.
OPTIMIZER = optax.sgd(1e-2, momentum=0.9)


def random_model_params(model):
    shapes = jax.eval_shape(model.init, *example_inputs(SHAPE))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: (0.1 * rng.normal(size=s.shape)).astype(np.float32), shapes)


def train(model, parallel, devices=None, steps=2):
    """Metrics of each step, and the last state, from random parameters."""
    layout = Layout(parallel.mesh(devices))
    state = new_state(random_model_params(model), OPTIMIZER, (0.9,))
    shardings = state_shardings(layout, OPTIMIZER, jax.eval_shape(lambda: state))
    step = make_step(model, Flow(), Pixels(), OPTIMIZER, accumulation=1, seed=0, layout=layout)
    step = jax.jit(
        step,
        in_shardings=(shardings, layout.batch, layout.replicated),
        out_shardings=(shardings, layout.replicated),
    )
    state, history = jax.device_put(state, shardings), []
    for number in range(steps):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 256, (8, *SHAPE), np.uint8)
        batch = {"image": image, "label": rng.integers(0, 10, 8).astype(np.int32)}
        state, metrics = step(state, batch, {})
        history.append({name: float(value) for name, value in metrics.items()})
    return history, state


@functools.cache
def on_one_device(name):
    return train(MODELS[name], Parallel(), tuple(jax.devices()[:1]))


@pytest.mark.parametrize("name", MODELS)
def test_training_over_experts_equals_one_device(name):
    history, state = train(MODELS[name], Parallel(data=2, expert=4))
    expected, expected_state = on_one_device(name)
    for found, wanted in zip(history, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert expected[0]["loss"] != expected[1]["loss"]

    def close(start, found, wanted):
        """The same update, as far as float32 sums in another order are the same."""
        update = np.abs(wanted - start).max()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3 * update + 1e-6)

    trees = random_model_params(MODELS[name]), state.params, expected_state.params
    jax.tree.map(close, *(jax.device_get(tree) for tree in trees))
    experts = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if "experts" in jax.tree_util.keystr(path)
    ]
    assert experts
    for path, leaf in experts:
        assert leaf.addressable_shards[0].data.size == leaf.size // 4, path


@pytest.mark.parametrize("name", MODELS)
def test_a_steps_metrics_have_the_losses_and_loads(name):
    for metrics in on_one_device(name)[0]:
        assert metrics[LOSSES[name]] > 0
        assert 1 <= metrics["moe_max_load"] <= 8
        assert 0 < metrics["moe_entropy"] <= 1
        assert metrics["moe_dropped"] == 0


def test_the_loss_has_the_balance_of_every_layer():
    model, process = MODELS["dit_moe"].clone(label_dropout=0.0), Flow()
    rng = np.random.default_rng(3)
    x0, noise = rng.normal(size=(2, 8, *SHAPE)).astype(np.float32)
    example = {"x0": x0, "noise": noise, "t": np.linspace(0, 1, 8, dtype=np.float32)}
    example |= {"condition": {"label": np.arange(8, dtype=np.int32)}}

    def loss(balance):
        moe = model.ffn.clone(router=model.ffn.router.clone(balance=balance))
        function = jax.jit(make_loss(model.clone(ffn=moe), process))
        value, metrics = function(random_model_params(model), example, jax.random.key(0))
        return float(value), float(metrics["balance_loss"])

    (without, nothing), (total, balance) = loss(0.0), loss(1.0)
    assert nothing == 0
    assert total - without == pytest.approx(balance, rel=1e-5)
    moe = model.ffn.clone(router=model.ffn.router.clone(balance=1.0))
    x, t = process.corrupt(x0, noise, example["t"]), process.model_time(example["t"])
    apply = jax.jit(model.clone(ffn=moe).apply)
    output = apply({"params": random_model_params(model)}, x, t, example["condition"])
    layers = output.aux["losses"]["balance"]
    assert layers.shape == (2,) and balance == pytest.approx(float(layers.sum()), rel=1e-5)


# The papers' sizes: all parameters, and those that a token meets.

SIZES = {
    "DiT-MoE-S/2-8E2A": (199_307_552, 71_905_568),
    "DiT-MoE-S/2-16E2A": (369_213_728, 71_942_432),
    "DiT-MoE-B/2-8E2A": (795_861_536, 286_253_600),
    "DiT-MoE-B/2-16E2A": (1_475_412_512, 286_327_328),
    "DiT-MoE-L/2-8E2A": (2_823_764_000, 1_011_824_672),
    "DiT-MoE-XL/2-8E2A": (4_168_172_192, 1_492_730_528),
    "DiT-MoE-G/2-16E2A": (16_503_731_232, 3_181_573_152),
    "ProMoE-S": (75_543_584, 32_993_312),
    "ProMoE-B": (300_607_520, 130_572_320),
    "ProMoE-L": (1_062_684_704, 458_262_560),
    "ProMoE-XL": (1_567_733_792, 675_339_296),
}


def test_every_preset_with_these_experts_has_a_size():
    assert {n for n in PRESETS if n.startswith(("DiT-MoE", "ProMoE"))} == SIZES.keys()


@pytest.mark.parametrize("name", SIZES)
def test_presets_have_the_papers_parameters(name):
    preset = find_preset(name)
    found = count_parameters(preset.model, preset.shape), count_active(preset.model, preset.shape)
    assert found == SIZES[name]
