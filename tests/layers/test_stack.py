import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.layers.context import Context
from dit_jax.layers.stack import Stack
from dit_jax.models import DiT

DEPTH = 4


class Block(nn.Module):
    """A block that mixes tokens, sees the context and reports something."""

    @nn.compact
    def __call__(self, x, context):
        mixed = nn.Dense(x.shape[-1], name="dense")(x + context.vector[:, None])
        x = x + jnp.tanh(mixed) * x.mean(axis=1, keepdims=True)
        return x, {"norm": jnp.square(x).mean(), "train": float(context.train)}


def context(seed=0):
    vector = np.random.default_rng(seed).normal(size=(2, 8)).astype(np.float32)
    vector = jnp.asarray(vector)
    return Context(vector, jnp.zeros(2), vector, jnp.ones(2, bool), (2, 3), train=True)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 8)), jnp.float32)


@pytest.fixture(scope="module")
def params(x):
    params = Stack(Block(), DEPTH, "none").init(jax.random.key(0), x, context())["params"]
    noise = lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape)  # noqa: E731
    return jax.tree.map(noise, params)


def unrolled(params, x):
    aux = []
    for i in range(DEPTH):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        x, report = Block().apply({"params": layer}, x, context())
        aux.append(report)
    return x, aux


def stacked(remat, params, x, **kwargs):
    return Stack(Block(), DEPTH, remat).apply({"params": params}, x, context(), **kwargs)


def gradients(run, params, x):
    return jax.jit(jax.grad(lambda p, x: jnp.sin(run(p, x)[0]).sum(), argnums=(0, 1)))(params, x)


def assert_close(actual, expected):
    # Equal sums in programs that XLA fuses differently: a few float32 roundings.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_equals_a_loop_over_the_layers(remat, params, x):
    run = functools.partial(stacked, remat)
    y, aux = jax.jit(run)(params, x)
    expected, reports = unrolled(params, x)
    assert_close(y, expected)
    assert_close(aux, jax.tree.map(lambda *leaves: jnp.stack(leaves), *reports))
    assert_close(gradients(run, params, x), gradients(unrolled, params, x))


@pytest.mark.parametrize("cut", range(DEPTH + 1))
def test_sub_ranges_compose(cut, params, x):
    run = jax.jit(functools.partial(stacked, "none"), static_argnames=("start", "stop"))
    whole, aux = run(params, x)
    halfway, first = run(params, x, stop=cut)
    end, second = run(params, halfway, start=cut)
    assert_close(end, whole)
    assert_close(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second), aux)
    assert first["norm"].shape == (cut,)


def test_an_empty_range_is_the_identity(params, x):
    y, _ = stacked("none", params, x, start=2, stop=2)
    np.testing.assert_array_equal(y, x)


def test_layers_are_initialised_apart_and_alike_in_a_sub_range(x):
    stack = Stack(Block(), DEPTH, "none")
    kernel = stack.init(jax.random.key(0), x, context())["params"]["layers"]["dense"]["kernel"]
    assert kernel.shape == (DEPTH, 8, 8)
    assert len(np.unique(np.asarray(kernel).reshape(DEPTH, -1), axis=0)) == DEPTH
    part = stack.init(jax.random.key(0), x, context(), 1, 2)["params"]["layers"]["dense"]["kernel"]
    np.testing.assert_array_equal(part, kernel)


def count_equations(jaxpr, inside_scan=False, counts=None):
    """Counts the equations of a program by (primitive, whether it is within a scan)."""
    counts = collections.Counter() if counts is None else counts
    for equation in jaxpr.eqns:
        counts[equation.primitive.name, inside_scan] += 1
        inside = inside_scan or equation.primitive.name == "scan"
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                count_equations(inner, inside, counts)
    return counts


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_program_does_not_grow_with_depth(remat):
    """Equal programs, forward and backward, and so equal compile times, for any depth."""

    def program(depth):
        model = DiT(4, 16, depth, 2, num_classes=10, remat=remat)
        args = jnp.zeros((2, 8, 8, 4)), jnp.zeros(2), {"label": jnp.zeros(2, jnp.int32)}
        params = jax.eval_shape(model.init, jax.random.key(0), *args)["params"]
        loss = lambda params: model.apply({"params": params}, *args).prediction.sum()  # noqa: E731
        return count_equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)

    shallow, deep = program(4), program(28)
    assert shallow == deep
    # The blocks' matmuls are within the scan: qkv, attention twice, out, MLP twice and adaLN.
    assert deep["dot_general", True] >= 3 * 7
    # Outside: patches, time twice, the final layer and its adaLN, forward and backward.
    assert 0 < deep["dot_general", False] <= 3 * 5


@pytest.mark.parametrize(("remat", "expected"), [("dots", 2), ("full", 7)])
def test_remat_recomputes_what_it_says(remat, expected):
    """All matmuls of a block again, or only the two of attention that have no weights."""

    def matmuls(remat):
        model = DiT(4, 16, 2, 2, num_classes=10, remat=remat)
        args = jnp.zeros((2, 8, 8, 4)), jnp.zeros(2), {"label": jnp.zeros(2, jnp.int32)}
        params = jax.eval_shape(model.init, jax.random.key(0), *args)["params"]
        loss = lambda params: model.apply({"params": params}, *args).prediction.sum()  # noqa: E731
        counts = count_equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
        return counts["dot_general", True]

    assert matmuls(remat) - matmuls("none") == expected
