"""Routers against loops in float64 that are written from the papers' formulas.

Gradients of the loops are finite differences, so that neither choices nor formulas are shared.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import Flow
from dit_jax.errors import InputError
from dit_jax.layers.context import Context
from dit_jax.layers.mlp import Mlp, SwiGLU
from dit_jax.models import DiT, promoe
from dit_jax.models.inputs import example_inputs
from dit_jax.moe import MlpExperts, MoE, SwiGLUExperts
from dit_jax.moe.routers import (
    Dense2MoERouter,
    DiffMoERouter,
    DiTMoERouter,
    ExpertChoiceRouter,
    LossFreeRouter,
    ProMoEExpertChoiceRouter,
    ProMoERouter,
    TopKRouter,
)
from dit_jax.training.optimizer import AdamW, Constant
from dit_jax.training.step import make_loss

BATCH, TOKENS, WIDTH = 4, 6, 5
CONDITIONAL = (True, False, True, True)


def context_of(x, conditional=None, train=True):
    conditional = jnp.ones(len(x), bool) if conditional is None else jnp.asarray(conditional)
    vector = jnp.zeros((len(x), x.shape[-1]))
    return Context(vector, jnp.zeros(len(x)), vector, conditional, (1, x.shape[1]), train)


def tokens_of(seed=0, batch=BATCH, tokens=TOKENS, width=WIDTH):
    return np.random.default_rng(seed).normal(size=(batch, tokens, width)).astype(np.float32)


def params_of(router, x, seed=1):
    shapes = jax.eval_shape(lambda x: router.init(jax.random.key(0), x, context_of(x)), x)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


# Loops: (router, params, x, stopped, conditional) to (slots, losses). `slots` has for each group
# its (token, expert, weight) in the order in which the library has to have them; `stopped` is x
# where the paper stops the gradient.


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def unit(x):
    return x / max(np.linalg.norm(x), 1e-12)


def best(scores, k):
    return np.argsort(-np.asarray(scores), kind="stable")[:k]


def balance(probabilities, choices):
    """E sum_i f_i P_i of tokens' probabilities [N, E] and of all their choices."""
    count = len(probabilities[0])
    total = 0.0
    for expert in range(count):
        share = sum(choice == expert for choice in choices) / len(choices)
        total += count * share * np.mean([p[expert] for p in probabilities])
    return total


def dit_moe_loop(router, params, x, stopped, conditional):
    slots, losses, everything = [], [], ([], [])
    for sample in x:
        slots.append([])
        probabilities = [softmax(token @ params["kernel"]) for token in sample]
        for number, p in enumerate(probabilities):
            slots[-1] += [(number, expert, p[expert]) for expert in best(p, router.top_k)]
        chosen = [expert for _, expert, _ in slots[-1]]
        losses.append(balance(probabilities, chosen))
        everything[0].extend(probabilities)
        everything[1].extend(chosen)
    loss = np.mean(losses) if getattr(router, "per_sample", False) else balance(*everything)
    return slots, {"balance": router.balance * loss}


def dense2moe_loop(router, params, x, stopped, conditional):
    """DiT-MoE's, but for the weights."""
    slots, losses = dit_moe_loop(router, params, x, stopped, conditional)
    return [[(t, e, router.experts * w) for t, e, w in group] for group in slots], losses


def top_k_loop(router, params, x, stopped, conditional):
    slots, probabilities, choices, squares = [], [], [], []
    for sample in x:
        slots.append([])
        for number, token in enumerate(sample):
            logits = token @ params["kernel"]
            p = softmax(logits)
            chosen = best(p, router.top_k)
            slots[-1] += [(number, expert, p[expert] / p[chosen].sum()) for expert in chosen]
            probabilities.append(p)
            choices.extend(chosen)
            squares.append(np.log(np.exp(logits).sum()) ** 2)
    balanced = balance(probabilities, choices)
    return slots, {"balance": router.balance * balanced, "z": router.z_loss * np.mean(squares)}


def loss_free_loop(router, params, x, stopped, conditional):
    slots = []
    for sample in x:
        slots.append([])
        for number, token in enumerate(sample):
            scores = sigmoid(token @ params["kernel"])
            chosen = best(scores + params["bias_statistic"], router.top_k)
            slots[-1] += [(number, e, scores[e] / scores[chosen].sum()) for e in chosen]
    return slots, {}


def match(prototypes, means, temperature):
    """Mean cross-entropy of finding each prototype's own mean among all; both lists."""
    if len(means) < 2:
        return 0.0
    rows = []
    for i, prototype in enumerate(prototypes):
        logits = np.array([unit(prototype) @ unit(mean) for mean in means]) / temperature
        rows.append(-np.log(softmax(logits)[i]))
    return np.mean(rows)


def promoe_loop(router, params, x, stopped, conditional):
    prototypes, slots, members = params["prototypes"], [], {}
    for sample, has_condition in zip(x, conditional):
        slots.append([])
        for number, token in enumerate(sample):
            if not has_condition:
                slots[-1].append((number, router.experts, 1.0))
                continue
            cosines = [unit(token) @ unit(prototype) for prototype in prototypes]
            for expert in best(cosines, router.top_k):
                slots[-1].append((number, expert, cosines[expert]))
                members.setdefault(expert, []).append(token)
    active = sorted(members)
    means = [np.mean(members[expert], axis=0) for expert in active]
    loss = match(prototypes[active], means, router.temperature)
    return slots, {"contrast": router.contrast * loss}


def promoe_expert_choice_loop(router, params, x, stopped, conditional):
    prototypes, slots, losses = params["prototypes"], [], []
    taken = int(x.shape[1] / router.experts * router.top_k)
    for sample, has_condition in zip(x, conditional):
        if not has_condition:
            slots.append([(number, router.experts, 1.0) for number in range(len(sample))])
            continue
        slots.append([])
        means = []
        for expert, prototype in enumerate(prototypes):
            cosines = [unit(token) @ unit(prototype) for token in sample]
            chosen = best(cosines, taken)
            slots[-1] += [(number, expert, cosines[number]) for number in chosen]
            means.append(sample[chosen].mean(axis=0))
        losses.append(match(prototypes, means, router.temperature))
    return slots, {"contrast": router.contrast * (np.mean(losses) if losses else 0.0)}


def take_tokens(probabilities, taken):
    """Each expert's best tokens of [M, E]: `taken` [E] of them."""
    slots = []
    for expert, count in enumerate(taken):
        chosen = best(probabilities[:, expert], count)
        slots += [(number, expert, probabilities[number, expert]) for number in chosen]
    return slots


def expert_choice_loop(router, params, x, stopped, conditional):
    slots = []
    for sample in x:
        probabilities = np.array([softmax(token @ params["kernel"]) for token in sample])
        taken = int(len(sample) / router.experts * router.capacity)
        slots.append(take_tokens(probabilities, [taken] * router.experts))
    return slots, {}


def predictor(params, token):
    first, second = params["predictor_fc1"], params["predictor_fc2"]
    hidden = token @ first["kernel"] + first["bias"]
    return (hidden * sigmoid(hidden)) @ second["kernel"] + second["bias"]


def diffmoe_loop(router, params, x, stopped, conditional):
    pools = np.split(x, router.pools)
    slots, losses = [], []
    for pool, stopped_pool in zip(pools, np.split(stopped, router.pools)):
        pool, stopped_pool = (p.reshape(-1, p.shape[-1]) for p in (pool, stopped_pool))
        probabilities = np.array([softmax(token @ params["kernel"]) for token in pool])
        taken = int(len(pool) / router.experts * router.capacity)
        slots.append(take_tokens(probabilities, [taken] * router.experts))
        pairs = {(number, expert) for number, expert, _ in slots[-1]}
        for number, token in enumerate(stopped_pool):
            for expert, value in enumerate(sigmoid(predictor(params, token))):
                right = value if (number, expert) in pairs else 1 - value
                losses.append(-np.log(right))
    return slots, {"capacity": np.mean(losses)}


CASES = {
    "dit-moe": (DiTMoERouter(experts=4, top_k=2, balance=0.3), dit_moe_loop),
    "dit-moe-1": (DiTMoERouter(experts=4, top_k=1, balance=0.3), dit_moe_loop),
    "dit-moe-per-sample": (
        DiTMoERouter(experts=4, top_k=3, balance=0.3, per_sample=True),
        dit_moe_loop,
    ),
    "dense2moe": (Dense2MoERouter(experts=4, top_k=2, balance=0.3), dense2moe_loop),
    "top-k": (TopKRouter(experts=4, top_k=2, balance=0.3, z_loss=0.2), top_k_loop),
    "loss-free": (LossFreeRouter(experts=4, top_k=2), loss_free_loop),
    "promoe": (ProMoERouter(experts=4, contrast=0.7, temperature=0.3), promoe_loop),
    "promoe-2": (ProMoERouter(experts=4, top_k=2, contrast=0.7), promoe_loop),
    # Many prototypes: some clusters are empty.
    "promoe-many": (ProMoERouter(experts=16, contrast=0.7, temperature=0.3), promoe_loop),
    "promoe-ec": (
        ProMoEExpertChoiceRouter(experts=4, contrast=0.7, temperature=0.3),
        promoe_expert_choice_loop,
    ),
    "promoe-ec-3": (
        ProMoEExpertChoiceRouter(experts=4, top_k=3, contrast=0.7),
        promoe_expert_choice_loop,
    ),
    "expert-choice": (ExpertChoiceRouter(experts=4, capacity=1.5), expert_choice_loop),
    "diffmoe": (DiffMoERouter(experts=4), diffmoe_loop),
    "diffmoe-pools": (DiffMoERouter(experts=4, capacity=2.0, pools=2), diffmoe_loop),
}
each_router = pytest.mark.parametrize("name", CASES)


def dense_gates(routing, tokens):
    """The weight with which each token meets each expert, [G, M, E]; unused slots add nothing."""
    groups, slots = routing.experts.shape
    token = routing.tokens
    if token is None:
        token = jnp.broadcast_to(jnp.arange(slots) // (slots // tokens), (groups, slots))
    gates = jnp.zeros((groups, tokens, routing.count + 1))
    gates = gates.at[jnp.arange(groups)[:, None], token, routing.experts].add(routing.weights)
    return gates[..., :-1]


def used_slots(routing, tokens):
    """Each group's used slots (token, expert, weight), in their order."""
    groups, slots = routing.experts.shape
    token = routing.tokens
    if token is None:
        token = np.tile(np.arange(slots) // (slots // tokens), (groups, 1))
    rows = zip(np.asarray(token), np.asarray(routing.experts), np.asarray(routing.weights))
    return [[slot for slot in zip(*row) if slot[1] != routing.count] for row in rows]


@functools.cache
def compiled(module, train):
    def apply(params, x, conditional):
        return module.apply({"params": params}, x, context_of(x, conditional, train))

    return jax.jit(apply)


def run(module, params, x, conditional, train=True):
    return compiled(module, train)(params, x, jnp.asarray(conditional))


LOSS_FACTOR = 1.7


def sizes_of(router):
    groups = router.pools if isinstance(router, DiffMoERouter) else BATCH
    return groups, BATCH * TOKENS // groups, router.count


def mixing_of(router):
    """What the gates are weighed with in the objective, random."""
    return np.random.default_rng(7).normal(size=sizes_of(router))


@functools.cache
def computed(name):
    """Routing, losses and the gradients of a function of both, by parameters and by tokens."""
    router, _ = CASES[name]
    x = tokens_of()
    params = params_of(router, x)
    mixing = mixing_of(router)

    def objective(params, x):
        routing, aux = run(router, params, x, CONDITIONAL)
        losses = aux.get("losses", {})
        gates = jnp.sum(dense_gates(routing, mixing.shape[1]) * mixing)
        return gates + LOSS_FACTOR * sum(losses.values()), (routing, losses)

    gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    (_, (routing, losses)), gradients = gradient(params, x)
    return router, params, x, routing, losses, gradients


def loop_objective(name, params, x, stopped):
    router, loop = CASES[name]
    mixing = mixing_of(router)
    slots, losses = loop(router, params, x, stopped, CONDITIONAL)
    gates = sum(w * mixing[g, t, e] for g, group in enumerate(slots) for t, e, w in group)
    return gates + LOSS_FACTOR * sum(losses.values())


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@each_router
def test_choices_weights_and_losses_are_the_papers(name):
    router, params, x, routing, losses, _ = computed(name)
    _, loop = CASES[name]
    params, x = in_float64(params), x.astype(np.float64)
    slots, expected_losses = loop(router, params, x, x, CONDITIONAL)
    groups, tokens, count = sizes_of(router)
    assert routing.count == count and len(routing.experts) == groups
    found = used_slots(routing, tokens)
    assert [[s[:2] for s in group] for group in found] == [[s[:2] for s in g] for g in slots]
    for group, wanted in zip(found, slots, strict=True):
        weights = [slot[2] for slot in group]
        np.testing.assert_allclose(weights, [slot[2] for slot in wanted], rtol=1e-5, atol=1e-6)
    assert losses.keys() == expected_losses.keys()
    for key in losses:
        np.testing.assert_allclose(losses[key], expected_losses[key], rtol=1e-5)
    loads = np.bincount([e for group in slots for _, e, _ in group], minlength=count)
    np.testing.assert_array_equal(routing.loads(), loads)


def differences(function, array, step=1e-6):
    """Central differences by every number of an array, which is changed in place and restored."""
    result = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        old = array[index]
        array[index] = old + step
        upper = function()
        array[index] = old - step
        result[index] = (upper - function()) / (2 * step)
        array[index] = old
    return result


@each_router
def test_gradients_are_the_papers(name):
    router, params, x, _, _, (by_params, by_x) = computed(name)
    params, x = in_float64(params), x.astype(np.float64)
    stopped = x.copy()
    evaluate = functools.partial(loop_objective, name, params, x, stopped)
    leaves, found = jax.tree.leaves(params) + [x], jax.tree.leaves(by_params) + [by_x]
    # A rule moves statistics; no gradient does.
    assert all(leaf.any() for leaf in jax.tree.leaves(without_statistics(by_params)))
    for leaf, gradient in zip(leaves, found, strict=True):
        expected = differences(evaluate, leaf)
        tolerance = 1e-5 * max(np.abs(expected).max(), 1)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=tolerance)


def without_statistics(params):
    return {name: leaf for name, leaf in params.items() if not name.endswith("_statistic")}


TOKEN_CHOICE = ["dit-moe", "dit-moe-1", "dit-moe-per-sample", "top-k", "loss-free", "promoe"]


@pytest.mark.parametrize("name", TOKEN_CHOICE)
def test_every_token_gets_its_experts(name):
    router, params, x, *_ = computed(name)
    routing, _ = run(router, params, x, [True] * BATCH)
    assert routing.loads().sum() == router.chosen * BATCH * TOKENS
    experts = np.asarray(routing.experts).reshape(BATCH * TOKENS, -1)
    assert all(len(set(row)) == router.chosen for row in experts.tolist())


@pytest.mark.parametrize(
    ("router", "load"),
    [
        (ExpertChoiceRouter(experts=3), BATCH * TOKENS // 3),
        (ExpertChoiceRouter(experts=3, capacity=2.0), 2 * BATCH * TOKENS // 3),
        (DiffMoERouter(experts=3, pools=2), BATCH * TOKENS // 3),
        (ProMoEExpertChoiceRouter(experts=3, top_k=2), 2 * BATCH * TOKENS // 3),
    ],
)
def test_experts_that_choose_have_even_loads(router, load):
    x = tokens_of()
    routing, _ = run(router, params_of(router, x), x, [True] * BATCH)
    np.testing.assert_array_equal(routing.loads()[:3], load)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("kind", [DiTMoERouter, TopKRouter, LossFreeRouter, ProMoERouter])
def test_of_equal_scores_the_first_expert_is_taken(kind, k):
    x = np.zeros((2, 3, WIDTH), np.float32)
    router = kind(experts=4, top_k=k)
    params = params_of(router, x) | {"bias_statistic": np.zeros(4, np.float32)}
    routing, _ = run(router, params, x, [True, True])
    np.testing.assert_array_equal(routing.experts, np.tile(np.arange(k), (2, 3)))


@pytest.mark.parametrize(
    "router",
    [ExpertChoiceRouter(experts=2), ProMoEExpertChoiceRouter(experts=2), DiffMoERouter(experts=2)],
)
def test_of_equal_scores_the_first_token_is_taken(router):
    x = np.zeros((1, 4, WIDTH), np.float32)
    routing, _ = run(router, params_of(router, x), x, [True])
    assert [slot[:2] for slot in used_slots(routing, 4)[0]] == [(0, 0), (1, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("top_k_router", [False, True])
def test_the_balance_loss_of_even_and_of_collapsed_loads(top_k_router, per_sample):
    count, alpha = 4, 0.3
    router = DiTMoERouter(count, top_k=1, balance=alpha, per_sample=per_sample)
    if top_k_router:
        router = TopKRouter(count, top_k=1, balance=alpha)
    kernel = {"kernel": np.eye(count, dtype=np.float32)}
    even = np.stack([np.eye(count, dtype=np.float32)] * 3)  # Each expert has one token in four.
    _, aux = run(router, kernel, even, [True] * 3)
    np.testing.assert_allclose(aux["losses"]["balance"], alpha, rtol=1e-6)
    collapsed = np.zeros_like(even)
    collapsed[..., 2] = 100.0  # Probability 1 of expert 2 for all tokens.
    _, aux = run(router, kernel, collapsed, [True] * 3)
    np.testing.assert_allclose(aux["losses"]["balance"], alpha * count, rtol=1e-6)


def test_balance_within_a_sample_is_not_balance_over_the_batch():
    """Samples that use one expert each, but different ones: even over the batch alone."""
    kernel = {"kernel": np.eye(4, dtype=np.float32)}
    x = np.repeat(100 * np.eye(4, dtype=np.float32)[:, None], 3, axis=1)
    for per_sample, expected in ((False, 0.01), (True, 0.04)):
        router = DiTMoERouter(4, top_k=1, per_sample=per_sample)
        _, aux = run(router, kernel, x, [True] * 4)
        np.testing.assert_allclose(aux["losses"]["balance"], expected, rtol=1e-6)


def contrast_and_gradients(router, params, x, conditional):
    def loss(params, x):
        return run(router, params, x, conditional)[1]["losses"]["contrast"]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)


def one_cluster():
    """Tokens nearest one prototype, all of them."""
    prototypes = np.eye(4, WIDTH, dtype=np.float32)
    return {"prototypes": prototypes}, prototypes[2] + 0.1 * tokens_of()


@pytest.mark.parametrize(
    ("router", "conditional"),
    [
        (ProMoERouter(experts=4), [True] * BATCH),
        (ProMoERouter(experts=4), [False] * BATCH),
        (ProMoEExpertChoiceRouter(experts=4), [False] * BATCH),
    ],
)
def test_fewer_than_two_clusters_have_no_contrast(router, conditional):
    params, x = one_cluster()
    value, gradients = contrast_and_gradients(router, params, x, conditional)
    assert value == 0
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 0)  # And so finite.


@pytest.mark.parametrize("kind", [ProMoERouter, ProMoEExpertChoiceRouter])
def test_one_prototype_has_no_contrast(kind):
    router, x = kind(experts=1), tokens_of()
    value, gradients = contrast_and_gradients(router, params_of(router, x), x, CONDITIONAL)
    assert value == 0
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("kind", [ProMoERouter, ProMoEExpertChoiceRouter])
def test_zero_tokens_and_prototypes_have_finite_gradients(kind):
    router, x = kind(experts=3), tokens_of()
    x[0], x[1, 2] = 0, 0
    params = params_of(router, x)
    params["prototypes"][1] = 0

    def loss(params, x):
        routing, aux = run(router, params, x, [True] * BATCH)
        return routing.weights.sum() + aux["losses"]["contrast"]

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_contrast_draws_clusters_together_and_prototypes_apart():
    """A descent step lowers it, and the distance of tokens to their prototype over that between."""
    router, x = ProMoERouter(experts=3, temperature=0.3), tokens_of(3)
    params = params_of(router, x)
    before, (gradient, _) = contrast_and_gradients(router, params, x, [True] * BATCH)
    moved = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
    after, _ = contrast_and_gradients(router, moved, x, [True] * BATCH)
    assert after < before


@pytest.mark.parametrize(
    "router", [ProMoERouter(experts=4, top_k=2), ProMoEExpertChoiceRouter(experts=4, top_k=3)]
)
def test_samples_without_a_condition_go_to_an_expert_of_their_own(router):
    x = tokens_of()
    params = params_of(router, x)
    routing, _ = run(router, params, x, [False] * BATCH)
    np.testing.assert_array_equal(routing.loads(), [0, 0, 0, 0, BATCH * TOKENS])
    gates = dense_gates(routing, TOKENS)
    np.testing.assert_array_equal(gates[..., :4], 0)
    np.testing.assert_array_equal(gates[..., 4], 1)
    mixed, _ = run(router, params, x, CONDITIONAL)
    assert mixed.loads()[4] == TOKENS and np.all(mixed.loads()[:4] > 0)


# Limits: a mixture of one expert.


@pytest.mark.parametrize(
    "router",
    [
        DiTMoERouter(experts=1, top_k=1),
        TopKRouter(experts=1, top_k=1),
        LossFreeRouter(experts=1, top_k=1),
        ExpertChoiceRouter(experts=1),
        DiffMoERouter(experts=1),
    ],
    ids=lambda router: type(router).__name__,
)
@pytest.mark.parametrize(
    ("experts", "dense"),
    [
        (MlpExperts(ratio=2.0), Mlp(ratio=2.0)),
        (SwiGLUExperts(ratio=2.0), SwiGLU(ratio=3.0, bias=False)),
    ],
    ids=["mlp", "swiglu"],
)
def test_one_expert_is_a_dense_layer(router, experts, dense):
    x = tokens_of()
    shared = SwiGLU(bias=False)
    layer = MoE(router, experts, shared)
    params = params_of(layer, x)
    y, _ = run(layer, params, x, CONDITIONAL)
    only = jax.tree.map(lambda leaf: leaf[0], params["experts"])
    expected = run(dense, only, x, CONDITIONAL)[0]
    expected += run(shared, params["shared"], x, CONDITIONAL)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


# The losses again, against the PyTorch twins.


@pytest.mark.parametrize("name", ["dit-moe", "dit-moe-1", "dit-moe-per-sample"])
def test_the_balance_loss_is_the_twins(name):
    torch = pytest.importorskip("torch")
    from tests.torch_twins import moe_losses

    router, params, x, routing, losses, _ = computed(name)
    kernel = torch.tensor(params["kernel"], requires_grad=True)
    tokens = torch.tensor(x, requires_grad=True)
    indices = torch.tensor(np.asarray(routing.experts, np.int64)).reshape(BATCH, TOKENS, -1)
    twin = moe_losses.expert_balance_loss
    if router.per_sample:
        twin = moe_losses.sequence_balance_loss
    loss = twin(torch.softmax(tokens @ kernel, dim=-1), indices, router.balance)
    np.testing.assert_allclose(losses["balance"], loss.item(), rtol=1e-5)
    loss.backward()
    gradients = loss_gradients(router, params, x, "balance")
    np.testing.assert_allclose(gradients[0]["kernel"], kernel.grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients[1], tokens.grad, rtol=1e-4, atol=1e-6)


def loss_gradients(router, params, x, name):
    def loss(params, x):
        return run(router, params, x, CONDITIONAL)[1]["losses"][name]

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("promoe")])
def test_the_contrastive_loss_is_the_twins(name):
    torch = pytest.importorskip("torch")
    from tests.torch_twins import moe_losses

    router, params, x, routing, losses, _ = computed(name)
    conditional = np.array(CONDITIONAL)
    prototypes = torch.tensor(params["prototypes"], requires_grad=True)
    tokens = torch.tensor(x, requires_grad=True)
    if isinstance(router, ProMoERouter):
        chosen = np.asarray(routing.experts)[conditional].reshape(-1, router.top_k)
        twin, seen = moe_losses.token_choice_contrastive_loss, tokens[conditional].flatten(0, 1)
    else:
        taken = TOKENS * router.top_k // router.experts
        chosen = np.asarray(routing.tokens)[conditional, : router.experts * taken]
        chosen = chosen.reshape(-1, router.experts, taken)
        twin, seen = moe_losses.expert_choice_contrastive_loss, tokens[conditional]
    loss = router.contrast * twin(
        prototypes, seen, torch.tensor(chosen.astype(np.int64)), router.temperature
    )
    np.testing.assert_allclose(losses["contrast"], loss.item(), rtol=1e-5)
    loss.backward()
    gradients = loss_gradients(router, params, x, "contrast")
    np.testing.assert_allclose(gradients[0]["prototypes"], prototypes.grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[1], tokens.grad, rtol=1e-4, atol=1e-5)


# Statistics, which training moves by rules.

# Nothing of these may reach a statistic. The first has a learning rate of zero in the first step.
OPTIMIZERS = {
    "warmup": AdamW(learning_rate=1e-2, schedule=Constant(warmup=5)),
    "clipping": AdamW(learning_rate=1e-2, clip_norm=1e-3),
    "decay": AdamW(learning_rate=1e-2, weight_decay=0.5),
}


@functools.cache
def training_gradient(router):
    def loss(params, x):
        routing, aux = run(router, params, x, CONDITIONAL)
        moves = sum(aux["statistics"].values())
        return 1e-3 * routing.weights.sum() + sum(aux.get("losses", {}).values()) + moves

    return jax.jit(jax.grad(loss))


def one_training_step(router, params, x, optimizer):
    """The gradient, and the parameters after a step."""
    gradients = training_gradient(router)(params, x)
    transformation = optimizer.build(10)
    updates, _ = transformation.update(gradients, transformation.init(params), params)
    return gradients, jax.tree.map(jnp.add, params, updates)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_moves_the_bias_of_a_loss_free_router_by_its_rule(name):
    router, params, x, routing, *_ = computed("loss-free")
    router = router.clone(rate=0.25)
    loads = np.asarray(routing.loads())
    assert loads.sum() == 2 * BATCH * TOKENS and len(np.unique(np.sign(loads - 12))) > 1
    _, after = one_training_step(router, params, x, OPTIMIZERS[name])
    expected = params["bias_statistic"] - np.float32(0.25) * np.sign(loads - loads.mean())
    np.testing.assert_allclose(after["bias_statistic"], expected, rtol=1e-6)


def test_an_even_load_leaves_the_bias():
    router = LossFreeRouter(experts=4, top_k=1, rate=0.25)
    params = {"kernel": np.eye(4, dtype=np.float32), "bias_statistic": np.full(4, 0.1, np.float32)}
    _, after = one_training_step(
        router, params, np.stack([np.eye(4, dtype=np.float32)] * BATCH), OPTIMIZERS["decay"]
    )
    np.testing.assert_array_equal(after["bias_statistic"], params["bias_statistic"])


def test_a_bias_evens_the_load_out():
    router, params, x, *_ = computed("loss-free")
    kernel = params["kernel"] + np.eye(4, dtype=np.float32)[1]  # Expert 1 is everyone's favourite.
    params = {"kernel": kernel, "bias_statistic": np.zeros(4, np.float32)}
    router, x = router.clone(rate=0.04), np.abs(x)
    still = dataclasses.replace(OPTIMIZERS["decay"], learning_rate=0.0)
    first = run(router, params, x, CONDITIONAL)[0].loads()
    for _ in range(30):
        _, params = one_training_step(router, params, x, still)
    last = run(router, params, x, CONDITIONAL)[0].loads()
    assert np.ptp(last) < np.ptp(first) / 2


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("case", ["diffmoe", "diffmoe-pools"])
def test_a_step_moves_the_thresholds_of_diffmoe_by_their_average(case, name):
    router, params, x, *_ = computed(case)
    router = router.clone(threshold_decay=0.8)
    _, after = one_training_step(router, params, x, OPTIMIZERS[name])
    double = in_float64(params)
    lowest = []
    for pool in np.split(x.astype(np.float64), router.pools):
        values = np.array([sigmoid(predictor(double, token)) for token in pool.reshape(-1, WIDTH)])
        taken = int(len(values) / router.experts * router.capacity)
        lowest.append(np.sort(values, axis=0)[-taken])  # The k-th largest of each expert.
    expected = 0.8 * double["threshold_statistic"] + 0.2 * np.mean(lowest, axis=0)
    np.testing.assert_allclose(after["threshold_statistic"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("case", ["loss-free", "diffmoe"])
def test_other_parameters_do_not_feel_a_statistic(case, name):
    """Their update is that of a tree without one: neither clipping nor moments count it."""
    router, params, x, *_ = computed(case)
    gradients, after = one_training_step(router, params, x, OPTIMIZERS[name])
    others, transformation = without_statistics(params), OPTIMIZERS[name].build(10)
    updates, _ = transformation.update(
        without_statistics(gradients), transformation.init(others), others
    )
    expected = jax.tree.map(jnp.add, others, updates)
    jax.tree.map(np.testing.assert_array_equal, without_statistics(after), expected)


@pytest.mark.parametrize("case", ["loss-free", "diffmoe"])
def test_a_statistic_adds_nothing_to_the_loss(case):
    router, params, x, *_ = computed(case)
    _, aux = run(router, params, x, CONDITIONAL)
    assert all(float(value) == 0 for value in aux["statistics"].values())


def test_a_models_training_loss_moves_every_layers_bias():
    """Through a whole model: each layer of the stack has a bias and its own loads."""
    moe = MoE(LossFreeRouter(experts=4, rate=0.5), MlpExperts(ratio=1.0))
    model = DiT(
        patch=4, hidden=16, depth=2, heads=2, num_classes=10, label_dropout=0.0, ffn=moe
    ).clone(learn_sigma=False)
    key, *inputs = example_inputs((8, 8, 1))
    shapes = jax.eval_shape(model.init, key, *inputs)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32), shapes)
    x = rng.normal(size=(4, 8, 8, 1)).astype(np.float32)
    example = {"x0": x, "noise": np.zeros_like(x), "t": np.zeros(4, np.float32)}
    example |= {"condition": {"label": np.arange(4, dtype=np.int32)}}

    @jax.jit
    def gradient(params):
        return jax.grad(make_loss(model, Flow()), has_aux=True)(params, example, key)[0]

    optimizer = AdamW(learning_rate=1e-3, clip_norm=0.1, weight_decay=0.1).build(10)
    updates, _ = optimizer.update(gradient(params), optimizer.init(params), params)
    output = jax.jit(model.apply)({"params": params}, x, example["t"], example["condition"])
    loads = jax.vmap(lambda routing: routing.loads())(output.aux["routing"])
    assert loads.shape == (2, 4) and not np.array_equal(loads[0], loads[1])
    bias = updates["blocks"]["layers"]["ffn"]["router"]["bias_statistic"]
    np.testing.assert_array_equal(bias, -0.5 * np.sign(loads - loads.mean(1, keepdims=True)))


# DiffMoE where it samples.


def test_diffmoe_samples_by_threshold():
    """An expert takes as many tokens of the batch as its predictor marks, the most probable."""
    router, params, x, *_ = computed("diffmoe-pools")
    params = params | {"threshold_statistic": np.array([0.2, 0.5, 0.8, 2.0], np.float32)}
    routing, aux = run(router, params, x, CONDITIONAL, train=False)
    assert aux == {}
    double, tokens = in_float64(params), x.astype(np.float64).reshape(-1, WIDTH)
    probabilities = np.array([softmax(token @ double["kernel"]) for token in tokens])
    predicted = np.array([sigmoid(predictor(double, token)) for token in tokens])
    taken = (predicted > double["threshold_statistic"]).sum(axis=0)
    assert len(set(taken)) > 2 and taken[3] == 0 and taken.max() <= len(tokens)
    expected = take_tokens(probabilities, taken)
    (found,) = used_slots(routing, len(tokens))
    assert [slot[:2] for slot in found] == [slot[:2] for slot in expected]
    np.testing.assert_allclose([s[2] for s in found], [s[2] for s in expected], rtol=1e-5)
    np.testing.assert_array_equal(routing.loads(), taken)


@pytest.mark.parametrize(("threshold", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_diffmoe_takes_all_or_nothing_at_extreme_thresholds(threshold, share):
    router, params, x, *_ = computed("diffmoe")
    params = params | {"threshold_statistic": np.full(4, threshold, np.float32)}
    routing, _ = run(router, params, x, CONDITIONAL, train=False)
    np.testing.assert_array_equal(routing.loads(), share * BATCH * TOKENS)


def test_a_pool_does_not_see_the_others():
    router, params, x, routing, *_ = computed("diffmoe-pools")
    other = np.concatenate([x[:2], tokens_of(5)[2:]])
    changed, _ = run(router, params, other, CONDITIONAL)
    np.testing.assert_array_equal(changed.tokens[0], routing.tokens[0])
    np.testing.assert_allclose(changed.weights[0], routing.weights[0], rtol=1e-6)
    assert not np.array_equal(changed.tokens[1], routing.tokens[1])


def test_pools_that_do_not_divide_the_batch_are_an_error():
    router = DiffMoERouter(experts=4, pools=3)
    x = tokens_of()
    params = params_of(router.clone(pools=1), x)
    with pytest.raises(InputError, match=r"4 .* 3 pools"):
        run(router, params, x, CONDITIONAL)
    run(router, params, x, CONDITIONAL, train=False)  # One pool there.


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (DiTMoERouter(experts=2, top_k=3), "top-k is 3 and there are 2 experts"),
        (LossFreeRouter(experts=2, top_k=0), "top-k is 0"),
        (ExpertChoiceRouter(experts=8), "8 experts would take 0 of 6 tokens"),
        (ExpertChoiceRouter(experts=2, capacity=4.0), "2 experts would take 12 of 6 tokens"),
        (DiffMoERouter(experts=8, pools=4), "8 experts would take 0 of 6 tokens"),
    ],
)
def test_choices_that_cannot_be_made_are_an_error(router, message):
    x = tokens_of()
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda x: router.init(jax.random.key(0), x, context_of(x)), x)


# Conditions, as a model tells them.


def experts_by_sample(labels, train=False, **fields):
    """The experts [B, 4] of the tokens of a small ProMoE with three experts and a fourth."""
    model = promoe(2, 16, 2, router=ProMoERouter(experts=3), patch=4, **fields)
    x = np.random.default_rng(0).normal(size=(len(labels), 8, 8, 1)).astype(np.float32)

    @jax.jit
    def run_model(x, label):
        inputs = x, jnp.zeros(len(x)), {"label": label}
        params = model.init(jax.random.key(0), *inputs)
        return model.apply(params, *inputs, train=train, rngs={"dropout": jax.random.key(0)})

    output = run_model(x, np.array(labels, np.int32))
    experts = np.asarray(output.aux["routing"].experts)
    assert experts.shape == (1, len(labels), 4)
    return experts[0]


def test_the_null_label_is_the_number_of_classes():
    experts = experts_by_sample([10, 0, 9, 10], num_classes=10)
    np.testing.assert_array_equal(experts[[0, 3]], 3)
    assert experts[[1, 2]].max() < 3


def test_dropped_labels_count_as_null():
    experts = experts_by_sample([0, 1, 9], train=True, num_classes=10, label_dropout=1.0)
    np.testing.assert_array_equal(experts, 3)
    experts = experts_by_sample([0, 1, 9], train=True, num_classes=10, label_dropout=0.0)
    assert experts.max() < 3


def test_a_model_without_classes_has_no_unconditional_samples():
    assert experts_by_sample([0, 0], num_classes=0).max() < 3
