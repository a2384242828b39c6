"""Switch-DiT against DiT, and its prior loss against a plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from dit_jax.errors import InputError
from dit_jax.models import DiT
from dit_jax.models.switch_dit import (
    SwitchDiT,
    diffusion_prior_loss,
    jensen_shannon,
    prior_windows,
)
from dit_jax.moe import MlpExperts, MoE
from dit_jax.moe.routers import TopKRouter
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, use_layout

SIZES = {"patch": 2, "hidden": 32, "depth": 3, "heads": 2, "num_classes": 10}
X = jax.random.normal(jax.random.key(0), (4, 8, 8, 4))
T = jnp.array([0.0, 10.0, 500.0, 999.0])
LABEL = {"label": jnp.array([1, 2, 3, 10])}


@pytest.fixture(scope="module")
def params():
    """Parameters none of which is zero."""
    start = jax.jit(SwitchDiT(**SIZES).init)(jax.random.key(0), X, T, LABEL)["params"]
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), start)


def with_experts(params, experts):
    layers = params["blocks"]["layers"]
    moe = layers["moe"] | {"experts": experts}
    return params | {"blocks": {"layers": layers | {"moe": moe}}}


def test_experts_of_zero_are_dit(params):
    experts = jax.tree.map(jnp.zeros_like, params["blocks"]["layers"]["moe"]["experts"])
    ours = SwitchDiT(**SIZES).apply({"params": with_experts(params, experts)}, X, T, LABEL)
    plain = params | {"blocks": {"layers": params["blocks"]["layers"]["block"]}}
    dense = DiT(**SIZES).apply({"params": plain}, X, T, LABEL)
    np.testing.assert_allclose(ours.prediction, dense.prediction, atol=1e-6)


def test_experts_start_from_zero():
    start = jax.eval_shape(SwitchDiT(**SIZES).init, jax.random.key(0), X, T, LABEL)
    assert "moe" in start["params"]["blocks"]["layers"]
    made = jax.jit(SwitchDiT(**SIZES).init)(jax.random.key(0), X, T, LABEL)["params"]
    assert not any(map(jnp.any, jax.tree.leaves(made["blocks"]["layers"]["moe"]["experts"])))


def test_a_layer_is_its_formula(params):
    """Mask m = 1 + sum_k p_k (W_k x + b_k); out = block(m x) + (1 - m) x, by a loop."""
    from dit_jax.layers.context import Context

    layer = jax.tree.map(lambda leaf: leaf[0], params["blocks"]["layers"])
    x, time = (
        jax.random.normal(jax.random.key(2), (4, 16, 32)),
        jax.random.normal(jax.random.key(3), (4, 32)),
    )
    context = Context(time, T, time, jnp.ones(4, bool), (4, 4), False)
    block = SwitchDiT(**SIZES).block()
    ours, aux = block.apply({"params": layer}, x, context)

    gate, experts = layer["moe"]["router"]["gate"], layer["moe"]["experts"]["linear"]
    gates = jax.nn.softmax(jax.nn.silu(time) @ gate["kernel"] + gate["bias"])
    mask = np.ones(x.shape, np.float32)
    for sample in range(4):
        for expert in np.argsort(-gates[sample])[:2]:
            own = x[sample] @ experts["kernel"][expert] + experts["bias"][expert]
            mask[sample] += gates[sample, expert] * own
    dense = DiT(**SIZES).block()
    through, _ = dense.apply({"params": layer["block"]}, x * mask, context)
    np.testing.assert_allclose(ours, through + (1 - mask) * x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(aux["gates"], gates, rtol=1e-6)


def test_the_same_time_takes_the_same_experts(params):
    model = SwitchDiT(**SIZES)
    out = model.apply({"params": params}, X, jnp.full(4, 500.0), LABEL)
    experts = np.asarray(out.aux["routing"].experts)
    assert (experts.reshape(3, 4, 16, 2) == experts.reshape(3, 4, 16, 2)[:, :1, :1]).all()
    assert "losses" not in out.aux


def test_windows_slide_with_the_noise_level():
    windows = prior_windows(1000, 9, 2 / 3)
    assert (windows.sum(1) == 6).all()
    for level in (0, 499, 800, 999):
        start = round((level / 999) ** 4 * 3)
        assert windows[level].tolist() == [float(start <= u < start + 6) for u in range(9)]


def plain_loss(gates, all_gates, t, top_k):
    levels, depth, experts = all_gates.shape
    chosen = np.zeros((levels, depth, experts))
    for level in range(levels):
        for layer in range(depth):
            chosen[level, layer, np.argsort(-all_gates[level, layer])[:top_k]] = 1
    chosen = chosen.reshape(levels, -1)
    windows = prior_windows(levels, depth * experts, top_k / experts)
    cost = np.abs(chosen[:, :, None] - windows[:, None]).sum(0)
    _, unit = linear_sum_assignment(cost)
    total = 0.0
    for own, level in zip(gates.reshape(len(gates), -1) / depth, t):
        target = windows[level][unit] / windows[level].sum()
        middle = np.log((own + target) / 2 + 1e-6)
        total += (own * (np.log(own + 1e-6) - middle)).sum() / 2
        total += (target * (np.log(target + 1e-6) - middle)).sum() / 2
    return total / len(gates)


def test_the_prior_loss_is_the_plain_one():
    rng = np.random.default_rng(0)
    # Gates that favour units by level, so that one matching is the best.
    drift = np.linspace(-3, 3, 50)[:, None, None] * rng.standard_normal((1, 3, 4))
    every = np.asarray(jax.nn.softmax(drift + rng.standard_normal((50, 3, 4)), axis=-1))
    t = np.array([0, 7, 30, 49])
    ours = jax.jit(diffusion_prior_loss, static_argnums=3)(every[t], every, t, 2)
    np.testing.assert_allclose(ours, plain_loss(every[t], every, t, 2), rtol=1e-5)


def test_gates_equal_to_the_prior_cost_nothing():
    windows = prior_windows(20, 6, 0.5)
    p = windows / windows.sum(1, keepdims=True)
    np.testing.assert_allclose(jensen_shannon(p, p), 0, atol=1e-6)
    other = jensen_shannon(p[:1], p[-1:])
    np.testing.assert_allclose(other, np.log(2), atol=1e-4)  # Disjoint windows: its largest.


def test_training_moves_gates_towards_the_prior(params):
    model = SwitchDiT(**SIZES)

    def loss(params):
        out = model.apply(
            {"params": params}, X, T, LABEL, train=True, rngs={"dropout": jax.random.key(0)}
        )
        return out.aux["losses"]["diffusion_prior"]

    step = jax.jit(jax.value_and_grad(loss))
    before, slope = step(params)
    after, _ = step(jax.tree.map(lambda p, g: p - 0.5 * g, params, slope))
    assert after < before


@pytest.mark.parametrize("parallel", [Parallel(data=4, tensor=2), Parallel(data=2, expert=4)])
def test_devices_do_not_change_it(params, parallel):
    model = SwitchDiT(**SIZES, experts=4) if parallel.expert > 1 else SwitchDiT(**SIZES)
    if parallel.expert > 1:
        params = jax.jit(model.init)(jax.random.key(0), X, T, LABEL)["params"]
        params = jax.tree.map(
            lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), params
        )
    x, t = jnp.concatenate([X, X]), jnp.concatenate([T, T])
    label = {"label": jnp.concatenate([LABEL["label"]] * 2)}
    apply = lambda params, x: model.apply({"params": params}, x, t, label).prediction  # noqa: E731
    layout = Layout(parallel.mesh())
    with use_layout(layout):
        spread = jax.jit(apply, in_shardings=(layout.parameters(params), layout.batch))(params, x)
    np.testing.assert_allclose(spread, jax.jit(apply)(params, x), rtol=1e-4, atol=1e-5)


def test_experts_within_switched_blocks_are_refused():
    moe = MoE(TopKRouter(), MlpExperts())
    with pytest.raises(InputError, match="dense channel mixer"):
        jax.eval_shape(SwitchDiT(**SIZES, ffn=moe).init, jax.random.key(0), X, T, LABEL)
