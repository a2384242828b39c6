import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.layers.rope import AxialRope

GRID = (3, 4)


def queries(head_dim=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, GRID[0] * GRID[1], 3, head_dim)).astype(np.float32)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("extent", [None, 16.0])
def test_each_pair_is_turned_by_its_tokens_row_or_column(interleaved, extent):
    x, head_dim, theta = queries(), 8, 100.0
    y = AxialRope(theta, interleaved, extent)(x, GRID)
    for n, pair in np.ndindex(len(x[0]), head_dim // 2):
        row, column = divmod(n, GRID[1])
        if extent is not None:
            row, column = row * extent / (GRID[0] - 1), column * extent / (GRID[1] - 1)
        if interleaved:
            position, j = (column, row)[pair % 2], pair // 2
        else:
            position, j = (row, column)[pair // (head_dim // 4)], pair % (head_dim // 4)
        turn = np.exp(1j * position * theta ** (-4 * j / head_dim))
        before = x[:, n, :, 2 * pair] + 1j * x[:, n, :, 2 * pair + 1]
        after = y[:, n, :, 2 * pair] + 1j * y[:, n, :, 2 * pair + 1]
        np.testing.assert_allclose(after, before * turn, atol=2e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_products_depend_on_the_distance_alone(interleaved):
    rope = AxialRope(interleaved=interleaved)
    q, k = (np.broadcast_to(queries(seed=s)[:, :1], (2, 12, 3, 8)) for s in (0, 1))
    products = np.einsum("bqhd,bkhd->bhqk", rope(q, GRID), rope(k, GRID))
    place = np.array([divmod(n, GRID[1]) for n in range(12)])
    for a, b in np.ndindex(12, 12):
        step = place[a] - place[b]
        for c, d in np.ndindex(12, 12):
            if (place[c] - place[d] == step).all():
                np.testing.assert_allclose(products[..., a, b], products[..., c, d], atol=2e-5)


def test_bfloat16_goes_in_and_comes_out_with_angles_in_float32():
    x = jnp.asarray(queries(), jnp.bfloat16)
    y = AxialRope()(x, GRID)
    assert y.dtype == jnp.bfloat16
    exact = AxialRope()(x.astype(jnp.float32), GRID)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=2e-2)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="needs heads of 4 k, not 6"):
        AxialRope()(queries(head_dim=6), GRID)
