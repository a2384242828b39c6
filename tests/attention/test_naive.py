"""The naive references on limit cases, and on single queries summed by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention import naive

GRIDS = [(8, 8), (7, 10)]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def qkv(grid, prefix=0, batch=2, heads=2, width=4, seed=0, scale=1.5):
    rng = np.random.default_rng(seed)
    shape = (batch, prefix + math.prod(grid), heads, width)
    return [scale * rng.normal(size=shape) for _ in range(3)]


def constant_in(ids, x, prefix=0):
    """Gives every token of a group the value of the group's first token."""
    first = np.array([np.flatnonzero(ids == i)[0] for i in ids])
    return np.concatenate([x[:, :prefix], x[:, prefix:][:, first]], axis=1)


def by_hand(q, terms, scale):
    """out = sum w e^{s q.k} v / sum w e^{s q.k} over (w, k, v)."""
    top = sum(w * math.exp(scale * (q @ k)) * v for w, k, v in terms)
    return top / sum(w * math.exp(scale * (q @ k)) for w, k, _ in terms)


def clusters_of(grid, count, batch=2, heads=2, seed=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, count, size=(batch, heads, math.prod(grid)))


# Limits -------------------------------------------------------------------------------------------


def test_full_by_hand():
    q, k, v = qkv((2, 3))
    out = naive.full(q, k, v)
    terms = [(1, k[1, j, 0], v[1, j, 0]) for j in range(6)]
    np.testing.assert_allclose(out[1, 4, 0], by_hand(q[1, 4, 0], terms, 0.5), **CLOSE)
    assert out.dtype == np.float64


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("grid", [*GRIDS, (3, 5, 6)])
def test_limits_are_full_attention(grid, prefix):
    q, k, v = qkv(grid, prefix)
    full = naive.full(q, k, v)
    everything = {
        "clear": naive.clear(q, k, v, grid, 100),
        "grat cross": naive.grat(q, k, v, grid, 10, "cross"),
        "grat surround": naive.grat(q, k, v, grid, 10, "surround"),
        "grat, two cells": naive.grat(q, k, v, grid, 5, "surround"),
        "tile_window": naive.tile_window(q, k, v, grid, 3, 9),
        "windows": naive.windows(q, k, v, grid, 10),
        "windows, shifted": naive.windows(q, k, v, grid, 20, shifted=True),
    }
    for tile in (4, 3):
        selection = naive.pisa_selection(q, k, grid, 1.0, tile=tile)
        assert selection.all()
        for order in ("drop", "zeroth", "first"):
            everything[f"pisa {order}"] = naive.pisa(q, k, v, grid, selection, order, tile=tile)
    ids = clusters_of(grid, 5)
    everything["svg_ear"] = naive.svg_ear(q, k, v, ids, ids, np.ones((2, 2, 5, 5), bool))
    for name, out in everything.items():
        np.testing.assert_allclose(out, full, err_msg=name, **CLOSE)


@pytest.mark.parametrize("prefix", [0, 3])
def test_prefix_queries_are_dense_and_prefix_keys_seen(prefix):
    grid = (7, 10)
    q, k, v = qkv(grid, prefix)
    full = naive.full(q, k, v)
    ids = clusters_of(grid, 5)
    outs = [
        naive.clear(q, k, v, grid, 2, np.ones((2, 4, 4)) / 16),
        naive.llsa(q, k, v, grid, naive.llsa_selection(q, k, grid, 1, 2)),
        naive.llsa(q, k, v, grid, naive.llsa_selection(q, k, grid, 2, 2)),
        naive.pisa(q, k, v, grid, naive.pisa_selection(q, k, grid, 0.2, tile=3), tile=3),
        naive.grat(q, k, v, grid, 2, "cross"),
        naive.tile_window(q, k, v, grid, 2, 3),
        naive.svg_ear(q, k, v, ids, ids, np.zeros((2, 2, 5, 5), bool)),
        naive.windows(q, k, v, grid, 3, shifted=True),
    ]
    for out in outs:
        np.testing.assert_allclose(out[:, :prefix], full[:, :prefix], **CLOSE)
        assert out.shape == q.shape
        assert np.abs(out[:, prefix:] - full[:, prefix:]).max() > 1e-3


# CLEAR --------------------------------------------------------------------------------------------


def test_clear_disc_is_strict_and_counts_like_its_area():
    mask = naive.clear_mask((9, 9), 2).reshape(9, 9, 9, 9)
    assert mask[4, 4].sum() == 9  # distances 0, 1 and sqrt(2), not 2
    assert naive.clear_mask((3, 3, 3), 1.5)[13].sum() == 19
    wide = naive.clear_mask((41, 41), 16).reshape(41, 41, -1)[20, 20].sum()
    assert abs(wide / (math.pi * 16**2) - 1) < 0.03


def test_clear_pools_means_by_default_weights():
    grid = (8, 8)
    q, k, v = qkv(grid, 2)
    pool = np.ones((2, 4, 4)) / 16
    rows = [slice(0, 4), slice(4, 8)]
    k_grid, v_grid = (x[1, 2:, 0].reshape(8, 8, 4) for x in (k, v))
    terms = [(1, k[1, j, 0], v[1, j, 0]) for j in (0, 1)]
    terms += [
        (1, k_grid[y, x], v_grid[y, x])
        for y in range(8)
        for x in range(8)
        if (y - 3) ** 2 + (x - 6) ** 2 < 9
    ]
    terms += [(1, k_grid[y, x].mean((0, 1)), v_grid[y, x].mean((0, 1))) for y in rows for x in rows]
    out = naive.clear(q, k, v, grid, 3, pool)[1, 2 + 3 * 8 + 6, 0]
    np.testing.assert_allclose(out, by_hand(q[1, 2 + 3 * 8 + 6, 0], terms, 0.5), **CLOSE)


def test_clear_pool_weights_are_placed_per_head():
    grid = (4, 6)
    pool = np.random.default_rng(1).normal(size=(2, 4, 4))
    x = qkv(grid)[0]
    pooled = naive.clear_pooled(x, grid, pool)
    cells = x.reshape(2, 4, 6, 2, 4)
    np.testing.assert_allclose(
        pooled[:, 0], np.einsum("byxhd,hyx->bhd", cells[:, :, :4], pool), **CLOSE
    )
    np.testing.assert_allclose(
        pooled[:, 1], np.einsum("byxhd,hyx->bhd", cells[:, :, 4:], pool[:, :, :2]), **CLOSE
    )


# LLSA ---------------------------------------------------------------------------------------------


def test_llsa_blocks_are_in_z_order():
    blocks = naive.llsa_blocks((16, 16), 1).reshape(16, 16)[::4, ::4]
    np.testing.assert_array_equal(
        blocks, [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    )
    ragged = naive.llsa_blocks((5, 9), 1).reshape(5, 9)[::4, ::4]
    np.testing.assert_array_equal(ragged, [[0, 1, 4], [2, 3, 5]])
    np.testing.assert_array_equal(naive.llsa_parents((5, 18)), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1])


@pytest.mark.parametrize("grid", [(16, 16), (9, 18)])
@pytest.mark.parametrize("levels", [1, 2])
def test_llsa_is_exact_for_constant_blocks_only(grid, levels):
    q, k, v = qkv(grid)
    selection = naive.llsa_selection(q, k, grid, levels, 100)
    assert all(s.all() for s in selection)
    out = naive.llsa(q, k, v, grid, selection)
    assert np.abs(out - naive.full(q, k, v)).max() > 1e-2  # the means stay
    ids = naive.llsa_blocks(grid, levels)
    k, v = constant_in(ids, k), constant_in(ids, v)
    selection = naive.llsa_selection(q, k, grid, levels, 100)
    np.testing.assert_allclose(naive.llsa(q, k, v, grid, selection), naive.full(q, k, v), **CLOSE)


@pytest.mark.parametrize("levels", [1, 2])
def test_llsa_selects_the_best_blocks_among_candidates(levels):
    grid = (20, 36)
    q, k, _ = qkv(grid, 3)
    selection = naive.llsa_selection(q, k, grid, levels, 2)
    assert all((s.sum(-1) == 2).all() for s in selection)
    if levels == 2:
        parents = naive.llsa_parents(grid)
        allowed = selection[1][:, :, parents][:, :, :, parents]
        assert (selection[0] <= allowed).all()
    tied = naive.llsa_selection(np.zeros_like(q), k, grid, levels, 2)
    assert all(s[..., :2].all() for s in tied)


def test_llsa_one_level_by_hand():
    grid, prefix = (6, 9), 1
    q, k, v = qkv(grid, prefix)
    selection = naive.llsa_selection(q, k, grid, 1, 2)
    blocks = {}  # (row, col) of a block -> its tokens, in Z-order of the blocks
    for key in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2)]:
        blocks[key] = [
            prefix + y * 9 + x for y in range(6) for x in range(9) if (y // 4, x // 4) == key
        ]
    assert sorted(sum(blocks.values(), [])) == list(range(1, 55))
    k0, v0, q0 = k[1, :, 1], v[1, :, 1], q[1, :, 1]
    order = list(blocks.values())
    scores = [q0[blocks[0, 2]].mean(0) @ k0[t].mean(0) for t in order]
    best = np.argsort(scores)[-2:]
    assert set(np.flatnonzero(selection[0][1, 1, 4])) == set(best)
    terms = [(1, k0[0], v0[0])]
    terms += [(1, k0[t], v0[t]) for j in best for t in order[j]]
    terms += [(len(t), k0[t].mean(0), v0[t].mean(0)) for t in order]
    query = prefix + 2 * 9 + 8  # in the block (0, 2)
    np.testing.assert_allclose(
        naive.llsa(q, k, v, grid, selection)[1, query, 1], by_hand(q0[query], terms, 0.5), **CLOSE
    )


def test_llsa_two_levels_by_hand():
    grid = (16, 34)  # parents of 256, 256 and 32 tokens
    q, k, v = qkv(grid, batch=1, heads=1)
    q0, k0, v0 = (x[0, :, 0].reshape(16, 34, 4) for x in (q, k, v))

    def cell(x, side, row, col):
        part = x[side * row : side * (row + 1), side * col : side * (col + 1)]
        return part.reshape(-1, 4)

    means = [cell(q0, 16, 0, 2).mean(0) @ cell(k0, 16, 0, j).mean(0) for j in range(3)]
    parent = int(np.argmax(means))
    children = [(r, c) for r in range(4) for c in range(9) if c // 4 == parent]
    own = cell(q0, 4, 3, 8).mean(0)
    best = max(children, key=lambda b: own @ cell(k0, 4, *b).mean(0))
    terms = [(1, *kv) for kv in zip(cell(k0, 4, *best), cell(v0, 4, *best))]
    for side, at in [(4, b) for b in children] + [(16, (0, j)) for j in range(3)]:
        tokens = cell(k0, side, *at)
        terms.append((len(tokens), tokens.mean(0), cell(v0, side, *at).mean(0)))
    selection = naive.llsa_selection(q, k, grid, 2, 1)
    out = naive.llsa(q, k, v, grid, selection)[0, 13 * 34 + 33, 0]
    np.testing.assert_allclose(out, by_hand(q0[13, 33], terms, 0.5), **CLOSE)


# PISA ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [*GRIDS, (3, 4, 5)])
@pytest.mark.parametrize("density", [0.0, 0.15, 0.5])
def test_pisa_is_exact_for_constant_keys(grid, density):
    q, k, v = qkv(grid, 2)
    k = constant_in(naive.cell_ids(grid, 3), k, 2)
    for bias in (False, True):
        selection = naive.pisa_selection(q, k, grid, density, tile=3, bias=bias, v=v)
        blocks = selection.shape[-1]
        assert (selection.sum(-1) == max(1, int(density * blocks))).all()
        for order in ("zeroth", "first"):  # H is 0
            out = naive.pisa(q, k, v, grid, selection, order, tile=3)
            np.testing.assert_allclose(out, naive.full(q, k, v), **CLOSE)
    assert np.abs(naive.pisa(q, k, v, grid, selection, "drop", tile=3) - out).max() > 1e-3


def test_pisa_by_hand():
    grid = (5, 7)
    q, k, v = qkv(grid, batch=1, heads=1)
    q0, k0, v0 = q[0, :, 0], k[0, :, 0], v[0, :, 0]
    tiles = {key: [] for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    for t in range(35):
        tiles[t // 7 // 4, t % 7 // 4].append(t)
    tiles = list(tiles.values())
    covariances = [sum(np.outer(k0[t] - k0[j].mean(0), v0[t]) for t in j) for j in tiles]
    scores = [0.5 * q0[tiles[1]].mean(0) @ k0[j].mean(0) for j in tiles]
    best = int(np.argmax(scores))
    selection = naive.pisa_selection(q, k, grid, 0.3, tile=4)
    np.testing.assert_array_equal(np.flatnonzero(selection[0, 0, 1]), [best])
    biased = np.array(scores) + [math.log(np.sqrt((h**2).sum()) + 1e-5) for h in covariances]
    selected = naive.pisa_selection(q, k, grid, 0.3, tile=4, bias=True, v=v)
    np.testing.assert_array_equal(np.flatnonzero(selected[0, 0, 1]), [np.argmax(biased)])

    x = q0[6]  # in tile 1
    e = np.exp(0.5 * k0 @ x)
    numerator, denominator = (e[tiles[best]] @ v0[tiles[best]], e[tiles[best]].sum())
    dropped = numerator / denominator
    g = 0
    for j, tile in enumerate(tiles):
        if j != best:
            mean = math.exp(0.5 * x @ k0[tile].mean(0))
            numerator, g = numerator + mean * v0[tile].sum(0), g + len(tile) * mean
    zeroth = numerator / (denominator + g)
    first = (numerator + g / 35 * 0.5 * x @ sum(covariances)) / (denominator + g)
    for order, expected in [("drop", dropped), ("zeroth", zeroth), ("first", first)]:
        out = naive.pisa(q, k, v, grid, selection, order, tile=4)
        np.testing.assert_allclose(out[0, 6, 0], expected, err_msg=order, **CLOSE)


def test_pisa_approximates_better_than_it_drops():
    grid = (16, 16)
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.normal(size=(3, 8, 8, 8)), np.ones((1, 2, 2, 1)))
    q, k, v = (smooth + 0.2 * rng.normal(size=smooth.shape)).reshape(3, 1, 256, 1, 8)
    selection = naive.pisa_selection(q, k, grid, 0.15, tile=2)
    error = {
        order: np.linalg.norm(
            naive.pisa(q, k, v, grid, selection, order, tile=2) - naive.full(q, k, v)
        )
        for order in ("drop", "zeroth")
    }
    assert error["zeroth"] < 0.5 * error["drop"]


# GRAT, tiles, windows -----------------------------------------------------------------------------


def test_grat_masks():
    cross = naive.grat_mask((6, 6), 2, "cross")
    np.testing.assert_allclose(cross.mean(), 1 - (2 / 3) ** 2)
    video = naive.grat_mask((2, 6, 6), (1, 2, 2), "cross")
    np.testing.assert_allclose(video.mean(), 1 - 1 / 2 * (2 / 3) ** 2)
    surround = naive.grat_mask((6, 6), 2, "surround")
    np.testing.assert_allclose(surround.mean(), (7 / 9) ** 2)
    assert surround[0].sum() == 16 and surround[14].sum() == 36
    np.testing.assert_array_equal(cross, cross.T)
    assert naive.grat_mask((5, 5), 2, "surround")[24].sum() == 9  # cells of side 1 and 2


def test_tile_window_stays_full_at_the_border():
    mask = naive.tile_window_mask((12, 12), 2, 3)
    np.testing.assert_array_equal(mask.sum(-1), 36)
    corner = mask[0].reshape(12, 12)
    assert corner[:6, :6].all() and corner.sum() == 36
    assert naive.tile_window_mask((4, 12), 2, (5, 3))[0].sum() == 4 * 6
    one = naive.tile_window_mask((7, 7), 2, 1)
    ids = naive.cell_ids((7, 7), 2)
    np.testing.assert_array_equal(one, ids[:, None] == ids[None])


def test_window_masks():
    one = naive.window_mask((5, 6), (2, 4))
    np.testing.assert_array_equal(one, naive.tile_window_mask((5, 6), (2, 4), 1))
    shifted = naive.window_mask((5, 6), (2, 4), shifted=True)
    rows, columns = [0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1]  # windows of tokens 0, 1-2, 3-4; 0-1, 2-5
    ids = (10 * np.array(rows)[:, None] + columns).ravel()
    np.testing.assert_array_equal(shifted, ids[:, None] == ids)
    np.testing.assert_array_equal(naive.window_mask((4,), 1, shifted=True), np.eye(4))
    odd = naive.window_mask((7,), 3, shifted=True)[3]
    np.testing.assert_array_equal(np.flatnonzero(odd), [1, 2, 3])


def test_proxy_tokens_by_hand():
    x = np.random.default_rng(0).normal(size=(2, 20, 3))
    windows = {}
    for t in range(20):
        windows.setdefault((t // 5 // 2, t % 5 // 2), []).append(t)
    means = np.stack([x[:, t].mean(1) for t in windows.values()], axis=1)
    np.testing.assert_allclose(naive.proxy_tokens(x, (4, 5), 2), means, **CLOSE)
    first = np.stack([x[:, t[0]] for t in windows.values()], axis=1)
    np.testing.assert_array_equal(naive.proxy_tokens(x, (4, 5), 2, "first"), first)
    np.testing.assert_array_equal(naive.proxy_tokens(x, (4, 5), 1), x)


# SVG-EAR ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 2])
def test_svg_ear_is_exact_for_constant_clusters(prefix):
    grid = (6, 7)
    q, k, v = qkv(grid, prefix, heads=1, batch=1)
    ids = clusters_of(grid, 6, batch=1, heads=1)
    ids = np.where(ids == 4, 5, ids)  # cluster 4 is empty
    k, v = constant_in(ids[0, 0], k, prefix), constant_in(ids[0, 0], v, prefix)
    queries = clusters_of(grid, 3, batch=1, heads=1, seed=5)
    for share in (0, 0.5):
        selection = np.random.default_rng(0).random((1, 1, 3, 6)) < share
        out = naive.svg_ear(q, k, v, queries, ids, selection)
        np.testing.assert_allclose(out, naive.full(q, k, v), **CLOSE)


def test_svg_ear_by_hand():
    grid = (3, 4)
    q, k, v = qkv(grid)
    queries, keys = clusters_of(grid, 2, seed=7), clusters_of(grid, 4, seed=8)
    selection = np.random.default_rng(1).random((2, 2, 2, 4)) < 0.5
    out = naive.svg_ear(q, k, v, queries, keys, selection)
    for b, h, t in [(0, 1, 5), (1, 0, 11)]:
        terms = []
        for j in range(4):
            members = np.flatnonzero(keys[b, h] == j)
            if selection[b, h, queries[b, h, t], j]:
                terms += [(1, k[b, m, h], v[b, m, h]) for m in members]
            elif len(members):
                terms.append((len(members), k[b, members, h].mean(0), v[b, members, h].mean(0)))
        np.testing.assert_allclose(out[b, t, h], by_hand(q[b, t, h], terms, 0.5), **CLOSE)


def test_svg_ear_of_tiles_is_pisa_of_zeroth_order():
    grid = (7, 10)
    q, k, v = qkv(grid, 2)
    selection = naive.pisa_selection(q, k, grid, 0.3, tile=3)
    ids = np.broadcast_to(naive.cell_ids(grid, 3), (2, 2, 70))
    np.testing.assert_allclose(
        naive.svg_ear(q, k, v, ids, ids, selection),
        naive.pisa(q, k, v, grid, selection, "zeroth", tile=3),
        **CLOSE,
    )


def test_svg2_keeps_the_mass():
    grid = (6, 7)
    q, k, _ = qkv(grid)
    queries, keys = clusters_of(grid, 3), np.minimum(clusters_of(grid, 8), 6)  # 7 is empty
    every = naive.svg2_selection(q, k, queries, keys, (3, 8), 1.0)
    assert every[..., :7].all() and not every[..., 7].any()
    one = naive.svg2_selection(q, k, queries, keys, (3, 8), 0.0)
    assert (one.sum(-1) == 1).all()
    sizes = [naive.svg2_selection(q, k, queries, keys, (3, 8), p).sum() for p in (0.3, 0.6, 0.9)]
    assert one.sum() <= sizes[0] < sizes[1] < sizes[2] < every.sum()


# Under jax ----------------------------------------------------------------------------------------

GRID, PREFIX = (6, 9), 2


def mechanisms():
    q, k, v = qkv(GRID, PREFIX)
    ids = clusters_of(GRID, 4)
    pool = np.random.default_rng(2).random((2, 4, 4))
    one, two = (naive.llsa_selection(q, k, GRID, levels, 2) for levels in (1, 2))
    tiles = naive.pisa_selection(q, k, GRID, 0.3, tile=3)
    pairs = naive.svg2_selection(q, k, ids, ids, (4, 4), 0.5)
    return {
        "full": lambda *x, xp: naive.full(*x, xp=xp),
        "clear": lambda *x, xp: naive.clear(*x, GRID, 2.5, pool, xp=xp),
        "llsa 1": lambda *x, xp: naive.llsa(*x, GRID, one, xp=xp),
        "llsa 2": lambda *x, xp: naive.llsa(*x, GRID, two, xp=xp),
        "drop": lambda *x, xp: naive.pisa(*x, GRID, tiles, "drop", tile=3, xp=xp),
        "zeroth": lambda *x, xp: naive.pisa(*x, GRID, tiles, "zeroth", tile=3, xp=xp),
        "first": lambda *x, xp: naive.pisa(*x, GRID, tiles, "first", tile=3, xp=xp),
        "grat": lambda *x, xp: naive.grat(*x, GRID, 2, "cross", xp=xp),
        "tile_window": lambda *x, xp: naive.tile_window(*x, GRID, 2, 3, xp=xp),
        "svg_ear": lambda *x, xp: naive.svg_ear(*x, ids, ids, pairs, xp=xp),
        "windows": lambda *x, xp: naive.windows(*x, GRID, 4, shifted=True, xp=xp),
    }


@pytest.mark.parametrize("name", list(mechanisms()))
def test_jax_values_and_gradients(name):
    mechanism = mechanisms()[name]
    x = qkv(GRID, PREFIX)
    rng = np.random.default_rng(9)
    target = rng.normal(size=x[0].shape)
    step = [rng.normal(size=x[0].shape) for _ in x]

    def loss(*x, xp):
        return (mechanism(*x, xp=xp) * target).sum()

    values, gradients = jax.jit(jax.value_and_grad(lambda x: loss(*x, xp=jnp)))(x)
    np.testing.assert_allclose(values, loss(*x, xp=np), rtol=1e-4, atol=1e-4)
    for i in range(3):
        ends = [
            loss(*[a + sign * 1e-5 * (i == j) * step[j] for j, a in enumerate(x)], xp=np)
            for sign in (1, -1)
        ]
        expected = (ends[0] - ends[1]) / 2e-5
        along = (np.asarray(gradients[i], np.float64) * step[i]).sum()
        np.testing.assert_allclose(along, expected, rtol=1e-4, atol=1e-3)
