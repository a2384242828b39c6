"""Ways of dispatch: against loops, against each other, and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.layers.context import Context
from dit_jax.moe import MlpExperts, MoE, Routing, SwiGLUExperts
from dit_jax.moe.dispatch import Capacity, Ragged, Reference
from dit_jax.moe.routers import (
    DiffMoERouter,
    DiTMoERouter,
    ExpertChoiceRouter,
    LossFreeRouter,
    ProMoEExpertChoiceRouter,
    ProMoERouter,
    TopKRouter,
)
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, use_layout

WIDTH = 4
KINDS = {"mlp": MlpExperts(ratio=2.0), "swiglu": SwiGLUExperts(ratio=2.0)}


def experts_params(kind, count, seed=0):
    shapes = jax.eval_shape(
        lambda: KINDS[kind].init_with_output(jax.random.key(0), count, WIDTH)[0]
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: (0.5 * rng.normal(size=s.shape)).astype(np.float32), shapes)


def expert_of(kind, params, number, x):
    """One expert on tokens [N, D], written out."""
    one = jax.tree.map(lambda leaf: np.asarray(leaf[number], np.float64), params)
    if kind == "mlp":
        h = x @ one["fc1"]["kernel"] + one["fc1"]["bias"]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        return h @ one["fc2"]["kernel"] + one["fc2"]["bias"]
    gate, value = (x @ one["gate_value"]["kernel"][:, i] for i in (0, 1))
    return (gate / (1 + np.exp(-gate)) * value) @ one["out"]["kernel"]


def tokens_of(groups, tokens, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(groups, tokens, WIDTH)).astype(np.float32)


def routing_of(experts, count, tokens=None, seed=2):
    """A routing by hand: experts [G, S], and weights at random."""
    weights = np.random.default_rng(seed).normal(size=np.shape(experts)).astype(np.float32)
    as_integers = functools.partial(jnp.asarray, dtype=jnp.int32)
    tokens = None if tokens is None else as_integers(tokens)
    return Routing(jnp.asarray(weights), as_integers(experts), tokens, count)


def loop(kind, params, x, routing, places=None):
    """Slots one by one, in float64, and which of them were kept [G, S].

    Where an expert has so many places and no more, first choices come before second ones.
    """
    groups, tokens = x.shape[:2]
    slots = routing.experts.shape[1]
    choices = slots // tokens if routing.tokens is None else 1
    number = np.tile(np.arange(slots) // choices, (groups, 1))
    number = number if routing.tokens is None else np.asarray(routing.tokens)
    experts, weights = np.asarray(routing.experts), np.asarray(routing.weights)
    total, kept = np.zeros(x.shape), np.zeros((groups, slots), bool)
    taken = [0] * routing.count
    for choice in range(choices):
        for g in range(groups):
            for s in range(choice, slots, choices):
                expert = experts[g, s]
                if expert == routing.count or taken[expert] == places:
                    continue
                taken[expert] += 1
                kept[g, s] = True
                token = x[g, number[g, s]].astype(np.float64)
                total[g, number[g, s]] += weights[g, s] * expert_of(kind, params, expert, token)
    return total, kept


@functools.cache
def compiled(dispatch, kind):
    """(x, routing, params, mixing) to results, the share dropped, and gradients by all three."""

    def objective(x, weights, params, routing, mixing):
        routing = routing.replace(weights=weights)
        y, dropped = dispatch(x, routing, params, KINDS[kind].compute)
        return jnp.sum(y * mixing), (y, dropped)

    gradient = jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)

    @jax.jit
    def both(x, routing, params):
        mixing = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
        (_, (y, dropped)), gradients = gradient(x, routing.weights, params, routing, mixing)
        return y, dropped, gradients

    return both


def assert_close(actual, expected, tolerance=1e-5):
    def close(a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1))

    jax.tree.map(close, actual, expected)


def random_experts(groups, tokens, k, count, seed=3):
    """Each token's experts, different ones; the first experts are liked more."""
    rng = np.random.default_rng(seed)
    likes = np.linspace(2, 0, count)
    scores = rng.gumbel(size=(groups, tokens, count)) + likes
    return np.argsort(-scores, axis=-1)[..., :k].reshape(groups, tokens * k)


def with_unused(experts, count):
    experts = experts.copy()
    experts[:, ::3] = count
    return experts


EXPERTS = 5
PAIRS = np.random.default_rng(4).integers(0, 3, (2, 7))  # Tokens of slots; some have none.
ROUTINGS = {
    "one-each": routing_of(random_experts(2, 3, 1, EXPERTS), EXPERTS),
    "two-each": routing_of(random_experts(2, 3, 2, EXPERTS), EXPERTS),
    "unused": routing_of(with_unused(random_experts(2, 3, 3, EXPERTS), EXPERTS), EXPERTS),
    "nothing": routing_of(np.full((2, 3), EXPERTS), EXPERTS),
    "all-on-one": routing_of(np.full((2, 6), 4), EXPERTS),
    "by-token": routing_of(random_experts(2, 7, 1, EXPERTS), EXPERTS, PAIRS),
    "by-token-unused": routing_of(
        with_unused(random_experts(2, 7, 1, EXPERTS), EXPERTS), EXPERTS, PAIRS
    ),
}
AMPLE = float(EXPERTS)  # Places for all slots at every expert.
WAYS = {"reference": Reference(), "ragged": Ragged(), "capacity": Capacity(AMPLE)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("way", WAYS)
def test_a_dispatch_is_the_loop_over_slots(way, name, kind):
    x, params, routing = tokens_of(2, 3), experts_params(kind, EXPERTS), ROUTINGS[name]
    y, dropped, gradients = compiled(WAYS[way], kind)(x, routing, params)
    expected, kept = loop(kind, params, x, routing)
    assert kept.sum() == routing.loads().sum()
    assert_close(y, expected)
    assert dropped == 0
    _, _, expected_gradients = compiled(Reference(), kind)(x, routing, params)
    assert_close(gradients, expected_gradients)


def test_the_references_gradient_is_that_of_the_loop():
    """By differences in float64, for the others are compared with it."""
    kind, routing = "mlp", ROUTINGS["by-token-unused"]
    x, params = tokens_of(2, 3), experts_params("mlp", EXPERTS)
    _, _, (by_x, by_weights, by_params) = compiled(Reference(), kind)(x, routing, params)
    mixing = np.cos(np.arange(x.size)).reshape(x.shape)
    rng = np.random.default_rng(5)
    direction = [rng.normal(size=x.shape), rng.normal(size=routing.weights.shape)]
    direction.append(jax.tree.map(lambda p: rng.normal(size=p.shape), params))

    def along(step):
        moved = jax.tree.map(lambda p, d: p.astype(np.float64) + step * d, params, direction[2])
        weights = np.asarray(routing.weights, np.float64) + step * direction[1]
        y, _ = loop(kind, moved, x + step * direction[0], routing.replace(weights=weights))
        return np.sum(y * mixing)

    expected = (along(1e-5) - along(-1e-5)) / 2e-5
    products = jax.tree.map(lambda g, d: np.sum(g * d), [by_x, by_weights, by_params], direction)
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), expected, rtol=1e-4)


ROUTERS = [
    DiTMoERouter(experts=4, top_k=2),
    DiTMoERouter(experts=4, top_k=2, per_sample=True),
    TopKRouter(experts=4, top_k=2),
    LossFreeRouter(experts=4, top_k=2),
    ProMoERouter(experts=3),
    ProMoERouter(experts=3, top_k=2),
    ProMoEExpertChoiceRouter(experts=3, top_k=2),
    ExpertChoiceRouter(experts=4, capacity=2.0),
    DiffMoERouter(experts=4),
    DiffMoERouter(experts=4, capacity=2.0, pools=3),
]


@pytest.mark.parametrize(
    "router", ROUTERS, ids=lambda r: "-".join(str(v) for v in (type(r).__name__, r.chosen))
)
def test_all_ways_agree_for_every_router(router):
    layer = MoE(router, KINDS["swiglu"])
    x = jnp.asarray(tokens_of(3, 6))
    vector = jnp.zeros((3, WIDTH))
    conditional = jnp.array([True, False, True])
    context = Context(vector, jnp.zeros(3), vector, conditional, (2, 3), train=True)
    shapes = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, context), x)["params"]
    rng = np.random.default_rng(6)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    mixing = rng.normal(size=x.shape)

    def objective(params, x, dispatch):
        y, aux = layer.clone(dispatch=dispatch).apply({"params": params}, x, context)
        added = sum(aux.get("losses", {}).values()) + sum(aux.get("statistics", {}).values())
        return jnp.sum(y * mixing) + added, (y, aux["metrics"])

    gradient = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
    # One program, as the routers and their gradients are the same.
    run = jax.jit(lambda *args: [gradient(*args, way) for way in WAYS.values()])
    expected, *others = run(params, x)
    for found in others:
        assert_close(found, expected)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(expected[1][0]["experts"]))
    assert expected[0][1][1]["moe_dropped"] == 0


# A capacity that is too small.


@pytest.mark.parametrize("factor", [0.0, 0.4, 0.8, 1.25])
@pytest.mark.parametrize("name", [name for name in ROUTINGS if name != "nothing"])
def test_a_small_capacity_drops_what_comes_last(name, factor):
    kind = "mlp"  # With biases, which what was dropped must not get.
    x, params, routing = tokens_of(2, 3), experts_params(kind, EXPERTS), ROUTINGS[name]
    places = max(1, int(factor * routing.experts.size / EXPERTS))
    expected, kept = loop(kind, params, x, routing, places)
    used = np.asarray(routing.experts) < EXPERTS
    y, dropped, gradients = compiled(Capacity(factor), kind)(x, routing, params)
    assert_close(y, expected)
    np.testing.assert_allclose(dropped, 1 - kept.sum() / used.sum(), rtol=1e-6)
    # What was dropped teaches nothing: as if it had not been routed.
    remaining = routing.replace(experts=jnp.where(kept, routing.experts, EXPERTS))
    _, _, expected_gradients = compiled(Reference(), kind)(x, remaining, params)
    assert_close(gradients, expected_gradients)
    np.testing.assert_array_equal(np.asarray(gradients[1])[~kept], 0)


def test_the_cases_of_a_small_capacity_drop_something():
    for name in ("two-each", "unused", "all-on-one", "by-token"):
        places = int(0.8 * ROUTINGS[name].experts.size / EXPERTS)
        _, kept = loop(
            "mlp", experts_params("mlp", EXPERTS), tokens_of(2, 3), ROUTINGS[name], places
        )
        assert 0 < kept.sum() < ROUTINGS[name].loads().sum(), name


def test_first_choices_come_before_second_ones():
    """Both of token 0's choices are expert 0 or 1; token 1's first choice displaces its second."""
    routing = routing_of([[0, 1, 1, 0]], 2)
    y, dropped, (_, by_weights, _) = compiled(Capacity(0.5), "mlp")(
        tokens_of(1, 2), routing, experts_params("mlp", 2)
    )
    assert dropped == 0.5
    np.testing.assert_array_equal(by_weights[0] != 0, [True, False, True, False])


def test_nothing_routed_is_nothing_dropped():
    routing = ROUTINGS["nothing"]
    for way in (*WAYS.values(), Capacity(0.5)):
        y, dropped, gradients = compiled(way, "mlp")(
            tokens_of(2, 3), routing, experts_params("mlp", EXPERTS)
        )
        assert dropped == 0
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves((y, gradients)))


@pytest.mark.parametrize("way", [*WAYS.values(), Capacity(1.0)], ids=repr)
def test_results_are_of_the_tokens_dtype(way):
    routing, params = ROUTINGS["two-each"], experts_params("mlp", EXPERTS)
    x = tokens_of(2, 3)
    expected, dropped = way(jnp.asarray(x), routing, params, KINDS["mlp"].compute)
    y, again = way(jnp.asarray(x, jnp.bfloat16), routing, params, KINDS["mlp"].compute)
    assert y.dtype == jnp.bfloat16 and dropped == again
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=0.05)


# Over devices.

GROUPS, TOKENS, COUNT = 8, 3, 8
MESHES = {
    "expert=8": Parallel(data=1, expert=8),
    "data=2,fsdp=2,expert=2": Parallel(data=2, fsdp=2, expert=2),
    "expert=4,tensor=2": Parallel(data=1, expert=4, tensor=2),
}


def one_empty(experts):
    return np.where(experts == 3, 0, experts)


def slots_of(k):
    """Experts [G, 3 k]: uneven loads, one without a token, all on one, and slots without one."""
    uneven = random_experts(GROUPS, TOKENS, k, COUNT)
    return {
        "uneven": uneven,
        "an empty expert": one_empty(uneven),
        "all on the first": np.zeros_like(uneven),
        "all on the last": np.full_like(uneven, COUNT - 1),
        "half unused": np.where(uneven % 2 == 0, COUNT, uneven),
        "one device's tokens alone": np.where(np.arange(GROUPS)[:, None] == 5, uneven, COUNT),
    }


LOADS = list(slots_of(1))


@functools.cache
def compiled_on(mesh, dispatch, kind):
    """As `compiled`, over the devices of a mesh; arrays lie as in training."""
    layout = Layout(MESHES[mesh].mesh())
    run = compiled.__wrapped__(dispatch, kind)
    placed = layout.parameters({"experts": experts_params(kind, COUNT)})["experts"]

    def over_devices(x, routing, params):
        with use_layout(layout):
            return run(x, routing, params)

    over_devices = jax.jit(over_devices, in_shardings=(layout.batch, layout.batch, placed))
    return over_devices


def test_the_cases_are_what_they_are_called():
    for name, experts in slots_of(2).items():
        loads = np.asarray(routing_of(experts, COUNT).loads())
        assert loads.max() >= 2 * loads.mean(), name
    assert np.asarray(routing_of(slots_of(2)["an empty expert"], COUNT).loads())[3] == 0


def assert_as_on_one_device(mesh, dispatch, kind, routing):
    x, params = tokens_of(GROUPS, TOKENS), experts_params(kind, COUNT)
    y, dropped, gradients = compiled_on(mesh, dispatch, kind)(x, routing, params)
    expected, _, expected_gradients = compiled(Reference(), kind)(x, routing, params)
    assert_close(y, expected)
    assert_close(gradients, expected_gradients)
    assert dropped == 0
    assert len(y.sharding.device_set) == 8


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("load", LOADS)
def test_ragged_over_devices_equals_one_device(load, mesh):
    assert_as_on_one_device(mesh, Ragged(), "mlp", routing_of(slots_of(2)[load], COUNT))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("load", ["uneven", "half unused", "all on the last"])
def test_ragged_over_devices_with_slots_that_name_their_token(load, mesh):
    pairs = np.random.default_rng(8).integers(0, TOKENS, (GROUPS, 2 * TOKENS))
    assert_as_on_one_device(mesh, Ragged(), "swiglu", routing_of(slots_of(2)[load], COUNT, pairs))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("load", ["uneven", "half unused", "all on the last"])
def test_an_ample_capacity_over_devices_equals_one_device(load, mesh):
    routing = routing_of(slots_of(2)[load], COUNT)
    assert_as_on_one_device(mesh, Capacity(float(COUNT)), "mlp", routing)


@pytest.mark.parametrize("mesh", ["expert=8", "expert=4,tensor=2"])
@pytest.mark.parametrize("load", ["uneven", "half unused"])
def test_each_device_counts_its_own_places(load, mesh):
    """A small capacity: every device drops of its own tokens, and the share is over all."""
    parts = MESHES[mesh].expert
    x, params = tokens_of(GROUPS, TOKENS), experts_params("mlp", COUNT)
    routing = routing_of(slots_of(2)[load], COUNT)
    places = max(1, int(0.5 * routing.experts.size / parts / COUNT))
    pieces = [
        loop(
            "mlp",
            params,
            x[rows],
            jax.tree.map(lambda leaf, rows=rows: leaf[rows], routing),
            places,
        )
        for rows in np.split(np.arange(GROUPS), parts)
    ]
    expected, kept = (np.concatenate(p) for p in zip(*pieces))
    y, dropped, _ = compiled_on(mesh, Capacity(0.5), "mlp")(x, routing, params)
    assert_close(y, expected)
    used = np.asarray(routing.experts) < COUNT
    assert 0 < kept.sum() < used.sum()
    np.testing.assert_allclose(dropped, 1 - kept.sum() / used.sum(), rtol=1e-6)


def dispatch_on(parallel, dispatch, groups, count):
    routing = routing_of(random_experts(groups, TOKENS, 1, count), count)
    x, params = jnp.asarray(tokens_of(groups, TOKENS)), experts_params("mlp", count)
    with use_layout(Layout(parallel.mesh())):
        return dispatch(x, routing, params, KINDS["mlp"].compute)


@pytest.mark.parametrize("dispatch", [Ragged(), Capacity()], ids=repr)
def test_experts_that_do_not_divide_are_an_error(dispatch):
    with pytest.raises(InputError, match=r"'experts' of size 6 .* 4 devices \(expert\)"):
        dispatch_on(Parallel(data=2, expert=4), dispatch, 8, 6)


@pytest.mark.parametrize("dispatch", [Ragged(), Capacity()], ids=repr)
def test_a_batch_that_does_not_divide_is_an_error(dispatch):
    with pytest.raises(InputError, match=r"6 groups of tokens .* 8 devices"):
        dispatch_on(Parallel(data=2, expert=4), dispatch, 6, 8)
