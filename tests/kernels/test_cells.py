import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.kernels.cells import Cells, join, split, tpu, xla

SPLITS = {
    "one side": Cells((16, 32), ((8, 8),)),
    "two sides": Cells((16, 32), ((8, 16), (4, 4))),
    "frames": Cells((4, 8, 16), ((2, 4, 8), (1, 2, 4))),
}


def tokens(grid, seed=0, heads=3, width=8, dtype=np.float32):
    x = np.random.default_rng(seed).normal(size=(2, np.prod(grid), heads, width))
    return jnp.asarray(x, dtype)


def by_hand(x, grid, sides):
    """Tokens [B, H, N, D] cell after cell, cells of cells likewise, found one by one."""

    def order(start, shape, sides):
        if not sides:
            yield from (tuple(np.add(start, i)) for i in np.ndindex(*shape))
            return
        counts = [n // s for n, s in zip(shape, sides[0], strict=True)]
        for cell in np.ndindex(*counts):
            corner = np.add(start, np.multiply(cell, sides[0]))
            yield from order(corner, sides[0], sides[1:])

    places = order((0,) * len(grid), grid, sides)
    numbers = [np.ravel_multi_index(place, grid) for place in places]
    return np.moveaxis(np.asarray(x)[:, numbers], 1, 2)


@pytest.mark.parametrize("name", SPLITS)
def test_tokens_of_a_cell_lie_together(name):
    cells = SPLITS[name]
    x = tokens(cells.grid)
    found, *means = split(x, cells, means=True)
    expected = by_hand(x, cells.grid, cells.sides)
    np.testing.assert_array_equal(found, expected)
    for side, mean in zip(cells.sides, means, strict=True):
        tokens_of = expected.reshape(*expected.shape[:2], -1, np.prod(side), expected.shape[-1])
        np.testing.assert_allclose(mean, tokens_of.mean(3), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(join(found, cells), x)


def test_what_fills_up_a_cell_is_nothing():
    cells, x = Cells((5, 6), ((4, 4), (2, 2))), tokens((5, 6))
    found, large, small = split(x, cells, means=True)
    assert found.shape == (2, 3, 64, 8) and large.shape[2] == 4 and small.shape[2] == 16
    corner = np.asarray(x).reshape(2, 5, 6, 3, 8)[:, 4:, 4:]
    np.testing.assert_allclose(large[:, :, 3], corner.mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert (found.reshape(2, 3, 16, 4, 8)[:, :, -1] == 0).all() and (small[:, :, -1] == 0).all()
    np.testing.assert_array_equal(join(found, cells), x)


def test_the_first_cells_may_lack_tokens():
    cells, x = Cells((5, 6), ((4, 4),), lead=(1, 2)), tokens((5, 6))
    found, means = split(x, cells, means=True)
    assert cells.counts == (2, 2)
    first = np.asarray(x).reshape(2, 5, 6, 3, 8)[:, :3, :2]
    np.testing.assert_allclose(means[:, :, 0], first.mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert (found[:, :, :4] == 0).all()
    np.testing.assert_array_equal(join(found, cells), x)
    assert not tpu.takes(x.shape, cells)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", SPLITS)
def test_the_tpu_kernels_move_tokens_bit_for_bit(name, dtype):
    cells = SPLITS[name]
    x = tokens(cells.grid, dtype=dtype)
    assert tpu.takes(x.shape, cells)
    found = tpu.split(x, cells, means=True, interpret=True)
    expected = xla.split(x, cells, means=True)
    np.testing.assert_array_equal(found[0], expected[0])
    tolerance = 1e-6 if dtype == np.float32 else 1e-2
    for one, other in zip(found[1:], expected[1:], strict=True):
        one, other = (np.asarray(part, np.float32) for part in (one, other))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    (alone,) = tpu.split(x, cells, means=False, interpret=True)
    np.testing.assert_array_equal(tpu.merge((alone,), cells, interpret=True), x)


@pytest.mark.parametrize("name", SPLITS)
def test_merging_is_the_transpose_of_splitting(name):
    cells = SPLITS[name]
    x = tokens(cells.grid)
    parts, pull = jax.vjp(functools.partial(split, cells=cells, means=True), x)
    cotangents = [jnp.cos(part + i) for i, part in enumerate(parts)]
    (expected,) = pull(tuple(cotangents))
    merged = tpu.merge(tuple(cotangents), cells, interpret=True)
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)
    # <split(x), y> = <x, merge(y)>.
    inner = sum(jnp.vdot(part, y) for part, y in zip(parts, cotangents, strict=True))
    np.testing.assert_allclose(inner, jnp.vdot(x, merged), rtol=1e-4)


def test_gradients_of_joining():
    cells = Cells((5, 6), ((4, 4),))
    x = split(tokens(cells.grid), cells)[0]
    y = tokens(cells.grid, seed=1)
    gradient = jax.grad(lambda x: jnp.vdot(join(x, cells), y))(x)
    np.testing.assert_array_equal(gradient, split(y, cells)[0])


def test_grids_that_are_not_whole_cells_are_left_to_xla():
    assert not tpu.takes((1, 30, 2, 8), Cells((5, 6), ((4, 4),)))
    assert not tpu.takes((1, 64, 2, 8), Cells((8, 8), ((4, 4),)))  # Rows of four are no tile.
    assert not tpu.takes((1, 4096, 2, 8), Cells((64, 64), ((64, 64),)))
