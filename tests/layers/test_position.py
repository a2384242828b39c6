import math

import numpy as np
import pytest

from dit_jax.layers.position import sincos_2d


@pytest.mark.parametrize(("grid", "dim"), [((3, 3), 8), ((2, 5), 12), ((4, 1), 4), ((16, 16), 64)])
def test_table_equals_a_double_loop(grid, dim):
    """The column in the first half, the row in the second; in each, sines before cosines."""
    half, expected = dim // 2, []
    for row in range(grid[0]):
        for column in range(grid[1]):
            features = []
            for position in (column, row):
                angles = [position * 10000 ** (-j / (half / 2)) for j in range(half // 2)]
                features += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            expected.append(features)
    table = sincos_2d(grid, dim)
    assert table.dtype == np.float32
    # Both are made in float64, and rounded to float32 once: 6e-8.
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-7)


def test_table_equals_the_twins():
    pytest.importorskip("torch")
    from tests.torch_twins.dit import sincos_pos_embed

    expected = sincos_pos_embed(1152, (32, 32))[0].numpy()
    np.testing.assert_allclose(sincos_2d((32, 32), 1152), expected, rtol=0, atol=1e-7)


def test_a_larger_grid_extends_a_smaller_one():
    """Positions count tokens: they are not scaled to the size of the image."""
    small, large = sincos_2d((4, 4), 16), sincos_2d((8, 8), 16)
    np.testing.assert_array_equal(large.reshape(8, 8, 16)[:4, :4], small.reshape(4, 4, 16))


def test_all_positions_differ():
    assert len(np.unique(sincos_2d((16, 16), 32), axis=0)) == 256
