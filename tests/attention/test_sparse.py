"""Each mechanism against its formula, written out naively, in values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.attention import CLEAR, GRAT, LLSA, PISA, Full, PooledCLEAR, TileWindow, Windows
from dit_jax.errors import InputError
from dit_jax.flops import count_flops
from dit_jax.models import DiT
from dit_jax.models.inputs import example_inputs
from tests.attention import naive


def tokens(grid, prefix=0, batch=2, heads=2, width=8, seed=0, smooth=False):
    rng = np.random.default_rng(seed)
    shape = (3, batch, prefix + int(np.prod(grid)), heads, width)
    x = rng.normal(size=shape)
    if smooth:
        x = 0.1 * x + rng.normal(size=(3, batch, 1, heads, width))
    return tuple(x.astype(np.float32))


REFERENCES = {
    Full: lambda mixer, q, k, v, grid, xp: naive.full(q, k, v, xp=xp),
    CLEAR: lambda mixer, q, k, v, grid, xp: naive.clear(q, k, v, grid, mixer.radius, xp=xp),
    GRAT: lambda mixer, q, k, v, grid, xp: naive.grat(
        q, k, v, grid, mixer.cell, mixer.pattern, xp=xp
    ),
    TileWindow: lambda mixer, q, k, v, grid, xp: naive.tile_window(
        q, k, v, grid, mixer.tile, mixer.window, xp=xp
    ),
    Windows: lambda mixer, q, k, v, grid, xp: naive.windows(
        q, k, v, grid, mixer.window, mixer.shifted, xp=xp
    ),
}


def reference(mixer, q, k, v, grid):
    """The mechanism's function of q, k and v; what it selects from these is chosen beforehand."""
    if isinstance(mixer, LLSA):
        selection = naive.llsa_selection(q, k, grid, mixer.levels, mixer.top_k)
        return lambda q, k, v, xp=np: naive.llsa(q, k, v, grid, selection, xp=xp)
    if isinstance(mixer, PISA):
        selection = naive.pisa_selection(
            q, k, grid, mixer.density, tile=mixer.tile, bias=mixer.by_covariance, v=v
        )
        return lambda q, k, v, xp=np: naive.pisa(
            q, k, v, grid, selection, mixer.order, tile=mixer.tile, xp=xp
        )
    function = REFERENCES[type(mixer)]
    return lambda q, k, v, xp=np: function(mixer, q, k, v, grid, xp)


CASES = {
    "clear": (CLEAR(radius=3, tile=(4, 4)), (8, 12), 0),
    "clear, ragged, prefix": (CLEAR(radius=2, tile=(4, 4)), (7, 9), 3),
    "clear, frames": (CLEAR(radius=2, tile=(2, 2, 2)), (3, 4, 5), 0),
    "grat, cross": (GRAT((4, 4), "cross"), (12, 8), 0),
    "grat, surround, ragged, prefix": (GRAT((3, 4), "surround"), (10, 9), 2),
    "grat, cross, frames": (GRAT((2, 2, 2), "cross"), (4, 5, 4), 1),
    "window": (TileWindow((2, 4), (3, 3)), (8, 16), 0),
    "window, ragged, prefix": (TileWindow((3, 3), (3, 1)), (10, 8), 4),
    "windows alone": (Windows((4, 2)), (8, 12), 0),
    "windows alone, ragged, prefix": (Windows((3, 4)), (7, 9), 2),
    "shifted windows": (Windows((4, 2), shifted=True), (8, 12), 0),
    "shifted windows, ragged, prefix": (Windows((3, 4), shifted=True), (7, 9), 3),
    "shifted windows, frames": (Windows((1, 4, 4), shifted=True), (3, 4, 8), 1),
    "llsa, one level": (LLSA(1, top_k=3), (16, 12), 0),
    "llsa, one level, ragged, prefix": (LLSA(1, top_k=2), (10, 7), 3),
    "llsa, two levels": (LLSA(2, top_k=2), (48, 32), 0),
    "llsa, two levels, ragged, prefix": (LLSA(2, top_k=2), (37, 18), 2),
    "llsa, more blocks than there are": (LLSA(2, top_k=8), (20, 9), 0),
    "pisa, drop": (PISA(0.3, "drop", tile=(4, 4)), (16, 12), 0),
    "pisa, zeroth": (PISA(0.3, "zeroth", tile=(4, 4)), (16, 12), 0),
    "pisa, zeroth, ragged, prefix": (PISA(0.3, "zeroth", tile=(4, 4)), (10, 13), 3),
    "pisa, first": (PISA(0.3, "first", tile=(4, 4)), (8, 12), 0),
    "pisa, first, by covariance, ragged, prefix": (PISA(0.4, "first", True, (3, 4)), (8, 9), 2),
}


@functools.cache
def compiled(mixer, grid):
    """Values, and gradients of their product with a cotangent."""

    @jax.jit
    def run(q, k, v, dout):
        out, pull = jax.vjp(lambda *x: mixer(*x, grid), q, k, v)
        return out, *pull(dout)

    return run


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_formula_in_values_and_gradients(name):
    mixer, grid, prefix = CASES[name]
    q, k, v = tokens(grid, prefix)
    dout = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    out, *gradients = compiled(mixer, grid)(q, k, v, dout)
    function = reference(mixer, q, k, v, grid)
    np.testing.assert_allclose(out, function(q, k, v), rtol=1e-5, atol=1e-5)
    loss = jax.jit(jax.grad(lambda *x: (function(*x, xp=jnp) * dout).sum(), (0, 1, 2)))
    expected = loss(q, k, v)
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


@settings(max_examples=10, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    prefix=st.integers(0, 2),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    mixer=st.sampled_from(
        [
            CLEAR(radius=2, tile=(4, 4)),
            GRAT((3, 2), "cross"),
            TileWindow((2, 3), (3, 1)),
            Windows((2, 3), shifted=True),
            LLSA(1, top_k=2),
            LLSA(2, top_k=1),
            PISA(0.3, "first", tile=(3, 3)),
        ]
    ),
)
def test_any_shape(grid, prefix, batch, heads, mixer):
    q, k, v = tokens(grid, prefix, batch, heads)
    expected = reference(mixer, q, k, v, grid)(q, k, v)
    np.testing.assert_allclose(
        jax.jit(mixer, static_argnums=3)(q, k, v, grid), expected, 1e-5, 1e-5
    )


@pytest.mark.parametrize(
    "mixer",
    [
        CLEAR(radius=12, tile=(4, 4)),
        GRAT((8, 9), "cross"),
        GRAT((4, 5), "surround"),
        TileWindow((4, 4), (5, 3)),
        Windows((8, 9)),
        Windows((16, 18), shifted=True),
        PISA(1.0, "zeroth", tile=(4, 4)),
        PISA(1.0, "first", tile=(4, 4)),
    ],
)
def test_what_sees_everything_is_full_attention(mixer):
    grid = (8, 9)
    q, k, v = tokens(grid, prefix=2)
    np.testing.assert_allclose(mixer(q, k, v, grid), Full()(q, k, v, grid), rtol=1e-5, atol=1e-5)


def constant_in(cells, grid, *arrays):
    """Gives the tokens of each cell the value of its first one."""
    ids = naive.cell_ids(grid, cells)
    first = [np.flatnonzero(ids == i)[0] for i in ids]
    return [x[:, first] for x in arrays]


def test_llsa_is_exact_where_blocks_are_constant_and_is_not_full_attention():
    grid = (16, 16)
    q, k, v = tokens(grid)
    full = Full()(q, k, v, grid)
    everything = LLSA(1, top_k=16)(q, k, v, grid)
    assert np.abs(everything - full).max() > 0.01
    k, v = constant_in(4, grid, k, v)
    full = Full()(q, k, v, grid)
    np.testing.assert_allclose(LLSA(1, top_k=16)(q, k, v, grid), full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_pisa_is_exact_at_any_density_where_keys_are_constant(density):
    grid = (12, 16)
    q, k, v = tokens(grid)
    (k,) = constant_in(4, grid, k)
    for order in ("zeroth", "first"):
        found = PISA(density, order, tile=(4, 4))(q, k, v, grid)
        np.testing.assert_allclose(found, Full()(q, k, v, grid), rtol=1e-5, atol=1e-5)


def test_pisas_expansion_is_nearer_to_full_attention_than_dropping():
    grid = (32, 32)
    q, k, v = tokens(grid, smooth=True)
    rows, columns = np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij")
    wave = np.sin(6 * rows + 4 * columns).reshape(1, -1, 1, 1).astype(np.float32)
    k, v = k + 2 * wave, v + wave
    full = Full()(q, k, v, grid)
    error = {
        order: np.abs(PISA(0.15, order, tile=(4, 4))(q, k, v, grid) - full).mean()
        for order in ("drop", "zeroth", "first")
    }
    assert error["zeroth"] < error["drop"] / 3
    assert error["first"] < error["zeroth"]


def test_clear_sharpens_logits_on_grids_larger_than_it_was_trained_on():
    grid = (8, 12)
    q, k, v = tokens(grid)
    scale = np.sqrt(np.log(96) / np.log(24) / q.shape[-1])
    expected = naive.clear(q, k, v, grid, 3, scale=scale)
    found = CLEAR(radius=3, native_tokens=24, tile=(4, 4))(q, k, v, grid)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("grid", "prefix"), [((8, 12), 0), ((7, 9), 3), ((2, 5, 6), 1)])
def test_pooled_keys_are_seen_besides_the_disc(grid, prefix):
    x = tokens(grid, prefix)
    mixer = PooledCLEAR(radius=2, pool=3, tile=(2,) * (len(grid) - 2) + (4, 4))
    start = mixer.init(jax.random.key(0), *x, grid)["params"]["pool_weight"]
    np.testing.assert_allclose(start, np.full((3, 3), 1 / 9))
    weight = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    dout = np.random.default_rng(2).normal(size=x[0].shape).astype(np.float32)

    def loss(weight, q, k, v):
        return (mixer.apply({"params": {"pool_weight": weight}}, q, k, v, grid) * dout).sum()

    def expected(weight, q, k, v):
        pool = jnp.broadcast_to(weight, (2, 3, 3))
        return (naive.clear(q, k, v, grid, 2, pool, xp=jnp) * dout).sum()

    found = jax.jit(jax.value_and_grad(loss, range(4)))(weight, *x)
    wanted = jax.jit(jax.value_and_grad(expected, range(4)))(weight, *x)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("mixer", [CLEAR(4, tile=(8, 8)), TileWindow(), GRAT((8, 8)), Windows()])
def test_local_attention_costs_in_proportion_to_the_tokens(mixer):
    def flops(side):
        x = jax.ShapeDtypeStruct((1, side * side, 1, 64), jnp.float32)
        return count_flops(functools.partial(mixer, grid=(side, side)), x, x, x)

    exponent = np.log(flops(256) / flops(64)) / np.log(16)
    assert exponent == pytest.approx(1, abs=0.05)


def test_a_dense_models_weights_serve_a_sparse_one():
    fields = {"patch": 2, "hidden": 16, "depth": 2, "heads": 2, "num_classes": 3}
    dense = DiT(**fields)
    key, x, t, condition = example_inputs((16, 16, 4))
    rng = np.random.default_rng(0)
    params = jax.eval_shape(dense.init, key, x, t, condition)
    params = jax.tree.map(lambda p: np.float32(0.2 * rng.normal(size=p.shape)), params)
    x = np.float32(rng.normal(size=x.shape))
    expected = jax.jit(dense.apply)(params, x, t, condition).prediction
    exact = DiT(**fields, attention=PISA(density=1.0, tile=(4, 4)))
    found = jax.jit(exact.apply)(params, x, t, condition).prediction
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    sparse = DiT(**fields, attention=LLSA(top_k=1), remat="full", dtype="bfloat16")
    loss = lambda p: sparse.apply(p, x, t, condition).prediction.sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("mixer", [CLEAR(4, tile=(8, 8)), TileWindow((4, 4), (3, 3))])
def test_bfloat16_is_near_to_float32(mixer):
    # Mechanisms that choose by q and k may choose otherwise in bfloat16; these do not choose.
    grid = (16, 16)
    x = [jnp.asarray(x, jnp.bfloat16) for x in tokens(grid, width=64)]
    found, expected = mixer(*x, grid), mixer(*(y.astype(jnp.float32) for y in x), grid)
    assert found.dtype == jnp.bfloat16
    # Weights and results are rounded to 2^-9, values are of order one.
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("mixer", "grid", "message"),
    [
        (CLEAR(radius=0), (8, 8), "radius"),
        (CLEAR(tile=(4,)), (8, 8), "cells of"),
        (GRAT(pattern="star"), (8, 8), "star"),
        (TileWindow(window=(2, 3)), (8, 8), "odd"),
        (Windows((8,)), (8, 8), "cells of"),
        (Windows((0, 8), shifted=True), (8, 8), "cells of"),
        (PISA(density=0.0), (8, 8), "density"),
        (LLSA(levels=3), (8, 8), "levels"),
        (LLSA(), (2, 8, 8), "grid"),
        (LLSA(), (9, 8), "do not fill"),
    ],
)
def test_wrong_fields_are_refused(mixer, grid, message):
    q, k, v = tokens((8, 8))
    with pytest.raises(InputError, match=message):
        mixer(q, k, v, grid)
