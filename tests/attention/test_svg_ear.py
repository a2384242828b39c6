import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.attention import SVGEAR, Full
from dit_jax.attention.svg_ear import clusters, most_wrong
from dit_jax.errors import InputError
from tests.attention import naive

GRID = (6, 9)
MIXER = SVGEAR(query_clusters=4, key_clusters=6, density=0.4, iterations=4, block=4)


def tokens(grid=GRID, prefix=0, seed=0, groups=None):
    """Queries, keys and values; with groups, keys and values of so many kinds."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 2, prefix + int(np.prod(grid)), 2, 8)).astype(np.float32)
    if groups:
        kinds = rng.normal(size=(groups, 2, 2, 2, 8)).astype(np.float32)
        kinds = kinds[rng.integers(0, groups, int(np.prod(grid)))]
        x[1:, :, prefix:] = kinds.transpose(1, 2, 0, 3, 4)
    return tuple(x)


def chosen(mixer, q, k, v, grid):
    """Clusters of queries and of keys, and who sees whom exactly, as the mechanism has them."""
    first = q.shape[1] - int(np.prod(grid))
    q, k, v = (jnp.asarray(x[:, first:]).swapaxes(1, 2) for x in (q, k, v))
    rows = clusters(q, mixer.query_clusters, mixer.iterations, mixer.block)
    columns = clusters(k, mixer.key_clusters, mixer.iterations, mixer.block)
    budget = max(1, int(mixer.density * columns.fill.shape[-1]))
    exact = most_wrong(q, k, v, rows, columns, budget)
    return rows.member.argmax(-1), columns.member.argmax(-1), exact


@pytest.mark.parametrize("prefix", [0, 3])
def test_it_is_the_formula_in_values_and_gradients(prefix):
    q, k, v = tokens(prefix=prefix)
    selection = chosen(MIXER, q, k, v, GRID)
    assert 0 < selection[2].mean() < 1
    dout = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def loss(q, k, v):
        return (MIXER(q, k, v, GRID) * dout).sum()

    def expected(q, k, v):
        return (naive.svg_ear(q, k, v, *selection, xp=jnp) * dout).sum()

    np.testing.assert_allclose(
        MIXER(q, k, v, GRID), naive.svg_ear(q, k, v, *selection), rtol=1e-5, atol=1e-5
    )
    found, wanted = (jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v) for f in (loss, expected))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


def test_seeing_all_clusters_exactly_is_full_attention():
    q, k, v = tokens(prefix=2)
    mixer = SVGEAR(query_clusters=4, key_clusters=6, density=1.0, iterations=4, block=4)
    full = Full()(q, k, v, GRID)
    np.testing.assert_allclose(mixer(q, k, v, GRID), full, rtol=1e-5, atol=1e-5)


def test_means_are_exact_where_clusters_are_constant():
    q, k, v = tokens(groups=3)
    # As many clusters as tokens: each of the three kinds is one cluster, and others are empty.
    mixer = SVGEAR(query_clusters=2, key_clusters=54, density=0.01, iterations=3, block=4)
    full = Full()(q, k, v, GRID)
    np.testing.assert_allclose(mixer(q, k, v, GRID), full, rtol=1e-5, atol=1e-5)


def test_the_error_is_below_that_of_dropping_the_least_attended():
    grid = (16, 16)
    q, k, v = tokens(grid)
    mixer = SVGEAR(query_clusters=8, key_clusters=16, density=0.3, iterations=10, block=4)
    full = Full()(q, k, v, grid)
    rows, columns, exact = chosen(mixer, q, k, v, grid)
    kept = naive.svg2_selection(q, k, rows, columns, (8, 16), top_p=0.0, least=0.5)
    assert kept.mean() > exact.mean()  # Though more of them are kept.
    dropped = np.take_along_axis(kept, np.asarray(rows)[..., None], axis=2)
    dropped = np.take_along_axis(dropped, np.asarray(columns)[:, :, None], axis=3)
    dropped = naive.weighted_attention(*naive.inputs(np, q, k, v), dropped.astype(float))
    error = [np.abs(x - full).mean() for x in (mixer(q, k, v, grid), dropped)]
    assert error[0] < error[1]


@pytest.mark.parametrize(("count", "groups", "block"), [(1, 3, 2), (40, 6, 5), (17, 17, 1)])
def test_clusters_hold_every_token_once(count, groups, block):
    x = np.random.default_rng(0).normal(size=(1, 2, count, 3)).astype(np.float32)
    found = clusters(jnp.asarray(x), groups, 2, block)
    np.testing.assert_array_equal(found.join(found.split(x)), x)
    assert found.counts.sum() == 2 * count and found.fill.sum() == 2 * count
    number = np.append(found.member.argmax(-1), np.full((1, 2, 1), -1), axis=2)
    of_place = np.take_along_axis(number, np.asarray(found.token), axis=2).reshape(
        *found.fill.shape, block
    )
    for index in np.ndindex(*found.fill.shape):
        fill = found.fill[index]
        assert (of_place[index][:fill] == found.cluster[index]).all()
        assert (of_place[index][fill:] == -1).all()


def test_wrong_fields_are_refused():
    q, k, v = tokens()
    for mixer, grid in ((SVGEAR(density=0.0), GRID), (SVGEAR(), (9, 9))):
        with pytest.raises(InputError, match="density"):
            mixer(q, k, v, grid)
