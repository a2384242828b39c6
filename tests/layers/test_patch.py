import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.errors import InputError
from dit_jax.layers.patch import patch_grid, patchify, unpatchify

few = settings(deadline=None, derandomize=True, max_examples=15)
sizes = st.integers(1, 3)


def image(batch, rows, columns, patch, channels):
    shape = (batch, rows * patch, columns * patch, channels)
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@few
@given(sizes, sizes, sizes, st.integers(1, 4), st.integers(1, 5))
def test_unpatchify_undoes_patchify(batch, rows, columns, patch, channels):
    x = image(batch, rows, columns, patch, channels)
    grid = patch_grid(x.shape, patch)
    assert grid == (rows, columns)
    tokens = patchify(x, patch)
    assert tokens.shape == (batch, rows * columns, patch * patch * channels)
    np.testing.assert_array_equal(unpatchify(tokens, grid, patch), x)


@few
@given(sizes, sizes, sizes, st.integers(1, 4), st.integers(1, 5))
def test_order_of_tokens_and_of_their_features(batch, rows, columns, patch, channels):
    """Tokens row-major over the grid; features by row, then column, then channel."""
    x = image(batch, rows, columns, patch, channels)
    expected = [
        [
            [
                x[b, row * patch + p, column * patch + q, c]
                for p in range(patch)
                for q in range(patch)
                for c in range(channels)
            ]
            for row in range(rows)
            for column in range(columns)
        ]
        for b in range(batch)
    ]
    np.testing.assert_array_equal(patchify(x, patch), expected)


@pytest.mark.parametrize("shape", [(1, 6, 8, 3), (1, 8, 6, 3), (1, 2, 2, 3)])
def test_an_image_that_does_not_divide_is_an_error(shape):
    with pytest.raises(InputError, match=f"{shape[1]}x{shape[2]}.*4x4"):
        patchify(np.zeros(shape, np.float32), 4)
