"""Each mechanism against its formula, written out naively, in values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.attention import CLEAR, GRAT, LLSA, PISA, Full, TileWindow
from dit_jax.errors import InputError
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
