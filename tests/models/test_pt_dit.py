"""PT-DiT against its formula, against DiT, and its growth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.attention import Full, PerLayer, TileWindow
from dit_jax.errors import InputError
from dit_jax.flops import count_flops
from dit_jax.layers.block import Alternate
from dit_jax.layers.context import Context
from dit_jax.layers.mlp import Mlp
from dit_jax.layers.norm import LayerNorm
from dit_jax.layers.rope import AxialRope
from dit_jax.models import DiT, PTDiT
from dit_jax.models.inputs import example_inputs
from dit_jax.models.pt_dit import Proxies
from tests.attention import naive


def model(width=16, heads=2, proxies=(2, 2), token="mean", window=(4, 4), **fields):
    fields = {"hidden": width, "depth": 1, "heads": heads, "num_classes": 3} | fields
    return PTDiT(**fields, proxies=Proxies(proxies, token), window=window)


def context_of(c, grid):
    return Context(c, c[:, 0], c, jnp.ones(len(c), bool), grid, False)


def abstract_block(block, width, grid):
    x = jax.ShapeDtypeStruct((1, int(np.prod(grid)), width), jnp.float32)
    c = jax.ShapeDtypeStruct((1, width), jnp.float32)
    init = lambda x, c: block.init(jax.random.key(0), x, context_of(c, grid))  # noqa: E731
    return x, c, jax.eval_shape(init, x, c)["params"]


def initial(block, x, c, grid):
    init = jax.jit(lambda x, c: block.init(jax.random.key(0), x, context_of(c, grid)))
    return init(x, c)["params"]


def run_block(block, params, x, c, grid):
    run = jax.jit(lambda p, x, c: block.apply({"params": p}, x, context_of(c, grid))[0])
    return run(params, x, c)


def random_block(block, width, grid, batch=2, seed=0):
    """Tokens, condition and parameters none of which is zero, so that every term counts."""
    rng = np.random.default_rng(seed)
    draw = lambda shape, scale=1.0: np.float32(scale * rng.normal(size=shape))  # noqa: E731
    params = abstract_block(block, width, grid)[2]
    params = jax.tree.map(lambda p: draw(p.shape, 0.3), params)
    return draw((batch, int(np.prod(grid)), width)), draw((batch, width)), params


def naive_block(x, c, params, grid, proxies, window, token="mean", xp=np):
    """The whole block in the module's terms: its parameters unpacked, and its perceptron."""
    x, c = naive.inputs(xp, x, c)
    if xp is np:
        params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)

    def projections(attention):
        if "qkv" in attention:
            kernels = [attention["qkv"]["kernel"][:, i] for i in range(3)]
            biases = list(attention["qkv"]["bias"])
        else:
            key, value = (attention["kv"]["kernel"][:, i] for i in range(2))
            kernels = [attention["q"]["kernel"], key, value]
            biases = [attention["q"]["bias"], *attention["kv"]["bias"]]
        out = attention["out"]
        pairs = [w for pair in zip(kernels, biases, strict=True) for w in pair]
        return *pairs, out["kernel"], out["bias"]

    def dense(y, layer):
        return y @ layer["kernel"] + layer["bias"]

    vectors = dense(c / (1 + xp.exp(-c)), params["adaln"]["linear"])[:, None]
    vectors = xp.split(vectors, 9, axis=-1)
    interaction = params["interaction"]
    attentions = interaction["attention"], interaction["cross"], params["attention"]
    weights = [projections(a) for a in (*attentions, params["shifted"])]
    x = naive.pt_dit_tokens(x, grid, vectors[:6], weights, proxies, window, token, xp=xp)
    y = x - x.mean(-1, keepdims=True)
    y = y / xp.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * (1 + vectors[7]) + vectors[6]
    y = dense(y, params["ffn"]["fc1"])
    y = 0.5 * y * (1 + xp.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return x + vectors[8] * dense(y, params["ffn"]["fc2"])


def assert_near(found, wanted, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * scale)


CASES = {
    "means": ((8, 12), (2, 2), "mean", (4, 4)),
    "first tokens": ((8, 8), (2, 4), "first", (4, 8)),
    "ragged": ((7, 9), (2, 3), "mean", (4, 3)),
    "frames": ((3, 4, 6), (1, 2, 2), "mean", (3, 4, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_block_is_its_formula_in_values_and_gradients(name):
    grid, *options = CASES[name]
    proxies, token, window = options
    block = model(proxies=proxies, token=token, window=window).block()
    x, c, params = random_block(block, 16, grid)
    dout = np.float32(np.random.default_rng(1).normal(size=x.shape))

    def run(x, c, params):
        return run_block(block, params, x, c, grid)

    def formula(x, c, params, xp=jnp):
        return naive_block(x, c, params, grid, proxies, window, token, xp)

    assert_near(run(x, c, params), formula(x, c, params, np))
    found, wanted = (
        jax.jit(jax.grad(lambda *args, f=f: (f(*args) * dout).sum(), (0, 1, 2)))(x, c, params)
        for f in (run, formula)
    )
    assert_near(found, wanted, 2e-5)  # Two float32 programs, backwards.


@settings(max_examples=8, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    proxies=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    token=st.sampled_from(["mean", "first"]),
    heads=st.integers(1, 3),
    batch=st.integers(1, 2),
)
def test_any_shape(grid, proxies, window, token, heads, batch):
    block = model(12, heads, proxies, token, window).block()
    x, c, params = random_block(block, 12, grid, batch)
    found = run_block(block, params, x, c, grid)
    assert_near(found, naive_block(x, c, params, grid, proxies, window, token))


def test_proxies_of_one_token_are_the_tokens():
    x = np.float32(np.random.default_rng(0).normal(size=(2, 30, 4)))
    for token in ("mean", "first"):
        found, grid = Proxies((1, 1), token)(x, (5, 6))
        np.testing.assert_array_equal(found, x)
        assert grid == (5, 6)
    mean, grid = Proxies((5, 6))(x, (5, 6))
    np.testing.assert_allclose(mean, x.mean(1, keepdims=True), rtol=1e-5, atol=1e-6)
    assert grid == (1, 1)


def test_a_new_block_reads_nothing_from_proxies():
    grid = (4, 6)
    block = model().block()
    x, c, params = random_block(block, 16, grid)
    start = initial(block, x, c, grid)["interaction"]
    assert not np.any(start["cross"]["out"]["kernel"]) and np.any(start["cross"]["q"]["kernel"])
    found = run_block(block, params | {"interaction": start}, x, c, grid)
    nothing = jax.tree.map(jnp.zeros_like, start)
    expected = run_block(block, params | {"interaction": nothing}, x, c, grid)
    np.testing.assert_array_equal(found, expected)


def test_one_window_without_proxies_is_dit():
    """DiT's weights serve where a window holds the grid, and shifted windows are gated off."""
    grid, width = (4, 6), 16
    ours, theirs = model(window=(4, 6)).block(), DiT(hidden=width, heads=2).block()
    x, c, params = random_block(theirs, width, grid)
    start = initial(ours, x, c, grid)
    adaln = jax.tree.map(
        lambda leaf: jnp.concatenate(
            [leaf[..., : 3 * width], 0 * leaf[..., 3 * width :], leaf[..., 3 * width :]], axis=-1
        ),
        params["adaln"],
    )
    found = run_block(ours, start | params | {"adaln": adaln}, x, c, grid)
    expected = run_block(theirs, params, x, c, grid)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_training_moves_every_parameter():
    """No zero lies behind another zero for ever."""
    pt_dit = model(patch=2, depth=2)
    key, x, t, condition = example_inputs((16, 16, 4))
    x = jax.random.normal(key, x.shape)
    t = t + 0.5
    start = jax.jit(pt_dit.init)(key, x, t, condition)["params"]

    @jax.jit
    def step(params):
        loss = lambda p: jnp.square(  # noqa: E731
            pt_dit.apply({"params": p}, x, t, condition).prediction - 1
        ).mean()
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    params = start
    for _ in range(5):
        params = step(params)
    for path, moved in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: np.abs(a - b).max(), params, start)
    ):
        assert moved > 0, jax.tree_util.keystr(path)


def test_it_composes_with_the_fields_of_dit():
    fields = {
        "attention": PerLayer(first=Full(), layers=2, rest=TileWindow((2, 2), (1, 1))),
        "qk_norm": LayerNorm(),
        "rope": AxialRope(),
        "ffn": Alternate((Mlp(), Mlp(ratio=2.0))),
        "norm": "rms",
        "remat": "full",
        "dtype": "bfloat16",
    }
    pt_dit = model(patch=2, depth=4, **fields)
    key, x, t, condition = example_inputs((8, 8, 4))
    params = jax.eval_shape(pt_dit.init, key, x, t, condition)
    layer = params["params"]["blocks"]["layers"]["blocks_0"]
    assert "q_norm" in layer["interaction"]["cross"] and "proxy_norm" in layer["interaction"]
    ones = jax.tree.map(lambda p: jnp.ones(p.shape), params)
    prediction = jax.jit(pt_dit.apply)(ones, x, t, condition).prediction
    assert prediction.shape == (1, 8, 8, 8) and np.isfinite(prediction).all()


def block_flops(block, width, side):
    grid = (side, side)
    return count_flops(
        lambda x, c, p: block.apply({"params": p}, x, context_of(c, grid))[0],
        *abstract_block(block, width, grid),
    )


def test_it_costs_what_its_attentions_cost():
    """All matmuls, by hand: N tokens, P proxies, windows of W, padded to N' when shifted."""
    width, side, window, proxy = 24, 32, 4, 4
    tokens, proxies, shifted = side**2, (side // proxy) ** 2, (side + window) ** 2
    projections = 4 * width**2 * (2 * tokens + proxies) + 2 * width**2 * (tokens + proxies)
    scores = 2 * width * (proxies**2 + tokens * proxies + window**2 * (tokens + shifted))
    perceptron, modulation = 8 * width**2 * tokens, 9 * width**2
    block = model(width, proxies=(proxy, proxy), window=(window, window)).block()
    expected = 2 * (projections + scores + perceptron + modulation)
    assert block_flops(block, width, side) == pytest.approx(expected, rel=1e-12)


def test_its_cost_grows_as_the_tokens_where_the_number_of_proxies_stays():
    def flops(side):
        return block_flops(model(64, proxies=(side // 8, side // 8)).block(), 64, side)

    exponent = np.log(flops(128) / flops(32)) / np.log(16)
    assert exponent == pytest.approx(1, abs=0.05)
    dense = functools.partial(block_flops, DiT(hidden=64, heads=2).block(), 64)
    assert flops(64) < dense(64) / 3


@pytest.mark.parametrize(
    ("proxies", "tokens", "message"),
    [
        (Proxies(token="last"), 64, "last"),
        (Proxies((2, 2, 2)), 64, "cells of"),
        (Proxies(), 66, "66"),
    ],
)
def test_what_does_not_fit_is_refused(proxies, tokens, message):
    with pytest.raises(InputError, match=message):
        proxies(jnp.zeros((1, tokens, 4)), (8, 8))
