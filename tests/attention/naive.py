"""Naive references of sparse attention: dense scores, explicit masks, no speed.

Written from the formulas of the papers, to judge faster implementations.

Conventions of every function:

- ``q``, ``k``, ``v`` are ``[B, N, H, D]`` and so is the output; the scale is ``s = 1/sqrt(D)``.
- ``grid`` is ``(rows, cols)`` or ``(frames, rows, cols)``; its tokens are row-major and come last.
  The first ``P = N - prod(grid)`` tokens are a prefix (text, registers): a prefix query attends to
  every token (prefix and grid, weight 1) and to nothing pooled; every grid query attends to every
  prefix token with weight 1.
- A length per axis (``tile``, ``cell``, ``window``) is a number for all axes or one for each.
  Cells at the end of an axis hold what is left of the grid: fewer tokens, never padding.
- ``xp`` is the array module. With NumPy all is computed in float64. With ``jax.numpy`` the same
  lines can be differentiated in ``q``, ``k``, ``v``.
- What is selected, or masked, is a concrete NumPy array and carries no gradient; functions called
  ``*_selection`` compute it in float64.

A weight ``w`` of a key multiplies its exponential in the numerator and in the denominator:
``out = sum_j w_j e^{s q.k_j} v_j / sum_j w_j e^{s q.k_j}``.
"""

import itertools
import math

import numpy as np

# Shared pieces ------------------------------------------------------------------------------------


def inputs(xp, *arrays):
    """Returns the arrays in the module's precision: float64 with NumPy, unchanged otherwise."""
    if xp is np:
        return [np.asarray(a, np.float64) for a in arrays]
    return [xp.asarray(a) for a in arrays]


def prefix_length(tokens, grid):
    """Returns P, the number of tokens before those of the grid."""
    prefix = tokens - math.prod(grid)
    if prefix < 0:
        raise ValueError(f"{tokens} tokens do not fill a grid of {grid}")
    return prefix


def per_axis(length, grid):
    """Returns one length for each axis of the grid."""
    return (length,) * len(grid) if np.ndim(length) == 0 else tuple(length)


def coordinates(grid):
    """Returns the position of each token on each axis, int [prod(grid), axes]."""
    return np.array(list(itertools.product(*[range(n) for n in grid])))


def cell_coordinates(grid, cell):
    """Returns the position, counted in cells, of the cell of each token, int [tokens, axes]."""
    return coordinates(grid) // np.array(per_axis(cell, grid))


def cell_counts(grid, cell):
    """Returns the number of cells on each axis; the last one may be smaller than the others."""
    return tuple(-(-n // c) for n, c in zip(grid, per_axis(cell, grid)))


def cell_ids(grid, cell):
    """Returns the row-major index of the cell of each token, int [tokens]."""
    return np.ravel_multi_index(tuple(cell_coordinates(grid, cell).T), cell_counts(grid, cell))


def membership(ids, count):
    """Returns bool [..., count, tokens]: token n is in group j."""
    return np.asarray(ids)[..., None, :] == np.arange(count)[:, None]


def group_sums(x, member, xp=np):
    """Sums x [B, N, H, D] over groups, bool [T, N] or [B, H, T, N]: [B, T, H, D]."""
    member = np.broadcast_to(member, (x.shape[0], x.shape[2], *member.shape[-2:]))
    return xp.einsum("bhtn,bnhd->bthd", xp.asarray(member, dtype=x.dtype), x)


def group_means(x, member, xp=np):
    """Means of x [B, N, H, D] over groups; 0 for an empty group: [B, T, H, D]."""
    member = np.broadcast_to(member, (x.shape[0], x.shape[2], *member.shape[-2:]))
    counts = np.maximum(member.sum(-1), 1).swapaxes(1, 2)[..., None]
    return group_sums(x, member, xp) / xp.asarray(counts, dtype=x.dtype)


def exponentials(q, k, weight, scale=None, xp=np):
    """Returns w_j e^{s q.k_j}, [B, H, Q, K], over a common factor of each query.

    ``weight`` is a concrete array that broadcasts to [B, H, Q, K]; 0 hides a key.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = scale * xp.einsum("bqhd,bkhd->bhqk", q, k)
    weight = np.broadcast_to(weight, scores.shape)
    visible = weight > 0
    largest = xp.max(xp.where(visible, scores, -xp.inf), axis=-1, keepdims=True)
    return xp.asarray(weight, dtype=scores.dtype) * xp.exp(
        xp.where(visible, scores - largest, -xp.inf)
    )


def weighted_attention(q, k, v, weight, scale=None, xp=np):
    """out = sum_j w_j e^{s q.k_j} v_j / sum_j w_j e^{s q.k_j}."""
    e = exponentials(q, k, weight, scale, xp)
    e = e / xp.sum(e, axis=-1, keepdims=True)
    return xp.einsum("bhqk,bkhd->bqhd", e, v)


def with_prefix(weight, prefix, pooled=0):
    """Adds P prefix queries and P prefix keys to a weight [..., grid queries, grid + pooled keys].

    Of the keys, the last ``pooled`` are hidden from prefix queries.
    """
    *batch, queries, keys = weight.shape
    whole = np.ones((*batch, prefix + queries, prefix + keys))
    whole[..., prefix:, prefix:] = weight
    if pooled:
        whole[..., :prefix, -pooled:] = 0
    return whole


def top_k(scores, count):
    """Marks the ``count`` largest scores of the last axis, all if there are fewer.

    The lower index wins a tie, and scores of -inf are never marked.
    """
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    marked = np.zeros(scores.shape, bool)
    np.put_along_axis(marked, order, True, axis=-1)
    return marked & (scores > -np.inf)


# Full attention -----------------------------------------------------------------------------------


def full(q, k, v, *, scale=None, xp=np):
    """Softmax attention: softmax(s q k^T) v (arXiv 1706.03762, eq. 1)."""
    q, k, v = inputs(xp, q, k, v)
    return weighted_attention(q, k, v, np.ones((q.shape[1], k.shape[1])), scale, xp)


# CLEAR --------------------------------------------------------------------------------------------


def clear_mask(grid, radius):
    """Grid query i sees grid key j iff |p_i - p_j|^2 < radius^2, strictly (arXiv 2412.16112).

    Positions are (row, col), or (frame, row, col) with the same unit on every axis.
    """
    p = coordinates(grid)
    squared = ((p[:, None] - p[None]) ** 2).sum(-1)
    return squared < radius**2


def clear_pooled(x, grid, pool, *, xp=np):
    """Weighted sums of x [B, prod(grid), H, D] over pool x pool cells, one weight set a head.

    ``pool`` is [H, f, f], over (row, col) in the cell; each frame is pooled by itself. A token
    that a cell at the border lacks adds nothing; the others keep their weights.
    """
    pool = xp.asarray(pool, dtype=x.dtype)
    side = pool.shape[-1]
    cell = (1,) * (len(grid) - 2) + (side, side)
    member = membership(cell_ids(grid, cell), math.prod(cell_counts(grid, cell)))
    offset = coordinates(grid) % side
    of_token = pool[:, offset[:, -2], offset[:, -1]]  # [H, tokens]
    return group_sums(x * of_token.T[None, :, :, None], member, xp)


def clear(q, k, v, grid, radius, pool=None, *, scale=None, xp=np):
    """CLEAR (arXiv 2412.16112): attention in a disc, and optional pooled keys and values.

    A grid query sees the grid keys nearer than ``radius`` (``clear_mask``) and, when ``pool``
    [H, f, f] is given, the weighted sums of keys and of values over every f x f cell, appended
    as further keys of weight 1. Prefix queries do not see the pooled ones.
    """
    q, k, v = inputs(xp, q, k, v)
    prefix = prefix_length(q.shape[1], grid)
    weight = clear_mask(grid, radius).astype(float)
    pooled = 0
    if pool is not None:
        k_pooled = clear_pooled(k[:, prefix:], grid, pool, xp=xp)
        v_pooled = clear_pooled(v[:, prefix:], grid, pool, xp=xp)
        pooled = k_pooled.shape[1]
        k = xp.concatenate([k, k_pooled], axis=1)
        v = xp.concatenate([v, v_pooled], axis=1)
        weight = np.concatenate([weight, np.ones((len(weight), pooled))], axis=1)
    return weighted_attention(q, k, v, with_prefix(weight, prefix, pooled), scale, xp)


# LLSA ---------------------------------------------------------------------------------------------


def morton(row, col):
    """Returns the Z-order index: the bits of row and col interleaved, row the higher of a pair."""
    code = 0
    for bit in range(32):
        code |= ((row >> bit) & 1) << (2 * bit + 1) | ((col >> bit) & 1) << (2 * bit)
    return code


def llsa_blocks(grid, level):
    """Returns the block of each token, int [tokens]: cells of side 4^level, counted in Z-order.

    Only cells that hold a token exist, so the indices are 0, 1, ..., T - 1 without gaps.
    """
    if len(grid) != 2:
        raise ValueError("LLSA is written for (rows, cols)")
    cells = cell_coordinates(grid, 4**level)
    codes = np.array([morton(int(row), int(col)) for row, col in cells])
    return np.unique(codes, return_inverse=True)[1]


def llsa_parents(grid):
    """Returns the level-2 block of each level-1 block, int [T1]."""
    one, two = llsa_blocks(grid, 1), llsa_blocks(grid, 2)
    return np.array([two[one == j][0] for j in range(one.max() + 1)])


def llsa_selection(q, k, grid, levels, top_k_blocks):
    """Blocks that LLSA selects (arXiv 2512.16615): hierarchical top-K of unscaled <qbar, kbar>.

    Returns a tuple of ``levels`` arrays, level 1 first; its item l - 1 is bool [B, H, T_l, T_l],
    (query block, key block), blocks in the order of ``llsa_blocks``. At the highest level all
    blocks are candidates; at level 1 of two the children of the blocks that the query block's
    parent selected. Means are over the real tokens of a block. The lower block index wins a tie.
    """
    q, k = inputs(np, q, k)
    prefix = prefix_length(q.shape[1], grid)
    q, k = q[:, prefix:], k[:, prefix:]

    def scores(level):
        ids = llsa_blocks(grid, level)
        member = membership(ids, ids.max() + 1)
        return np.einsum("bihd,bjhd->bhij", group_means(q, member), group_means(k, member))

    if levels == 1:
        return (top_k(scores(1), top_k_blocks),)
    if levels != 2:
        raise ValueError("levels is 1 or 2")
    second = top_k(scores(2), top_k_blocks)
    parents = llsa_parents(grid)
    candidates = second[:, :, parents][:, :, :, parents]
    first = top_k(np.where(candidates, scores(1), -np.inf), top_k_blocks)
    return first, second


def llsa(q, k, v, grid, selection, *, xp=np):
    """Log-linear sparse attention (arXiv 2512.16615), one softmax over tokens of all levels.

    With one level, a query of block i sees the tokens of the selected blocks S_i with weight 1
    and the means (k1_j, v1_j) of ALL blocks with weight n_j, their number of tokens (16).
    With two, it sees the tokens of S_i with weight 1, the level-1 means whose parent is in P_i,
    selected by the parent of i, with weight n_j (16), and ALL level-2 means with weight n_j (256).
    Selected blocks are counted both as tokens and as means.
    """
    q, k, v = inputs(xp, q, k, v)
    prefix = prefix_length(q.shape[1], grid)
    first = np.asarray(selection[0], bool)
    block = llsa_blocks(grid, 1)
    batch, heads = first.shape[:2]
    tokens = len(block)

    keys, values = [k], [v]
    weights = [first[:, :, block][:, :, :, block].astype(float)]
    for level in range(1, len(selection) + 1):
        ids = llsa_blocks(grid, level)
        member = membership(ids, ids.max() + 1)
        counts = member.sum(-1)
        keys.append(group_means(k[:, prefix:], member, xp))
        values.append(group_means(v[:, prefix:], member, xp))
        visible = np.ones((batch, heads, tokens, len(counts)))
        if level < len(selection):
            of_parent = np.asarray(selection[1], bool)
            parents = llsa_parents(grid)
            visible = of_parent[:, :, llsa_blocks(grid, 2)][:, :, :, parents]
        weights.append(visible * counts)
    weight = with_prefix(np.concatenate(weights, -1), prefix, sum(x.shape[-1] for x in weights[1:]))
    return weighted_attention(
        q, xp.concatenate(keys, axis=1), xp.concatenate(values, axis=1), weight, xp=xp
    )


# PISA ---------------------------------------------------------------------------------------------


def pisa_selected(density, blocks):
    """Returns the number of exact blocks, max(1, int(density * T))."""
    return min(blocks, max(1, int(density * blocks)))


def pisa_covariance(k, v, member, *, xp=np):
    """H_j = sum over n in block j of (k_n - kbar_j)^T v_n, [B, H, T, D, D] (arXiv 2602.01077)."""
    means = group_means(k, member, xp)
    member = xp.asarray(member, dtype=k.dtype)
    products = xp.einsum("tn,bnhd,bnhe->bhtde", member, k, v)
    return products - xp.einsum("bthd,bthe->bhtde", means, xp.einsum("tn,bnhe->bthe", member, v))


def pisa_selection(q, k, grid, density, *, tile=8, bias=False, v=None):
    """Exact blocks of PISA (arXiv 2602.01077): bool [B, H, T, T], (query tile, key tile).

    The max(1, int(density T)) largest of s qbar_i.kbar_j, or with ``bias`` (needs v) of
    log softmax_j(s qbar_i.kbar_j) + log(||H_j||_F + 1e-5). Tiles are row-major; the lower index
    wins a tie.
    """
    q, k = inputs(np, q, k)
    prefix = prefix_length(q.shape[1], grid)
    blocks = math.prod(cell_counts(grid, tile))
    member = membership(cell_ids(grid, tile), blocks)
    q_means, k_means = group_means(q[:, prefix:], member), group_means(k[:, prefix:], member)
    scores = np.einsum("bihd,bjhd->bhij", q_means, k_means) / math.sqrt(q.shape[-1])
    if bias:
        covariance = pisa_covariance(k[:, prefix:], inputs(np, v)[0][:, prefix:], member)
        norm = np.sqrt((covariance**2).sum((-1, -2)))
        top = scores.max(-1, keepdims=True)
        scores = scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))
        scores = scores + np.log(norm + 1e-5)[:, :, None, :]
    return top_k(scores, pisa_selected(density, blocks))


def pisa(q, k, v, grid, selection, order="first", *, tile=8, xp=np):
    """Piecewise sparse attention (arXiv 2602.01077).

    The tokens of selected tiles are exact. A tile j that is not selected, with n_j tokens, mean
    key kbar_j and H_j = sum (k - kbar_j)^T v:

    - "drop": adds nothing;
    - "zeroth": adds n_j e^{s q.kbar_j} to the denominator and e^{s q.kbar_j} sum_n v_n to the
      numerator;
    - "first": the numerator also gets (g / N) s q (sum of H_j over ALL tiles), where N is the
      number of grid tokens and g = sum over tiles not selected of n_j e^{s q.kbar_j}.
    """
    if order not in ("drop", "zeroth", "first"):
        raise ValueError(order)
    q, k, v = inputs(xp, q, k, v)
    prefix = prefix_length(q.shape[1], grid)
    ids = cell_ids(grid, tile)
    blocks = math.prod(cell_counts(grid, tile))
    member = membership(ids, blocks)
    k_grid, v_grid = k[:, prefix:], v[:, prefix:]

    selected = np.asarray(selection, bool)[:, :, ids]  # of each query token
    fine = selected[:, :, :, ids].astype(float)
    coarse = ~selected * member.sum(-1)
    if order == "drop":
        coarse = np.zeros(coarse.shape)
    weight = with_prefix(np.concatenate([fine, coarse], -1), prefix, blocks)

    keys = xp.concatenate([k, group_means(k_grid, member, xp)], axis=1)
    values = xp.concatenate([v, group_means(v_grid, member, xp)], axis=1)
    e = exponentials(q, keys, weight, xp=xp)
    numerator = xp.einsum("bhqk,bkhd->bqhd", e, values)
    denominator = xp.einsum("bhqk->bqh", e)[..., None]
    if order == "first":
        g = xp.einsum("bhqk->bqh", e[..., -blocks:])[..., None]
        covariance = pisa_covariance(k_grid, v_grid, member, xp=xp).sum(2) / len(ids)
        scale = 1 / math.sqrt(q.shape[-1])
        numerator = numerator + g * scale * xp.einsum("bqhd,bhde->bqhe", q, covariance)
    return numerator / denominator


# GRAT ---------------------------------------------------------------------------------------------


def grat_mask(grid, cell, pattern):
    """Which grid keys a grid query sees in GRAT (arXiv 2505.14687), bool [tokens, tokens].

    "cross": keys of cells with the same index on at least one axis; "surround": keys of cells
    whose index differs by at most 1 on every axis.
    """
    c = cell_coordinates(grid, cell)
    difference = np.abs(c[:, None] - c[None])
    if pattern == "cross":
        return (difference == 0).any(-1)
    if pattern == "surround":
        return (difference <= 1).all(-1)
    raise ValueError(pattern)


def grat(q, k, v, grid, cell, pattern, *, xp=np):
    """GRAT (arXiv 2505.14687): the queries of a cell share the keys of ``grat_mask``."""
    q, k, v = inputs(xp, q, k, v)
    prefix = prefix_length(q.shape[1], grid)
    weight = with_prefix(grat_mask(grid, cell, pattern), prefix)
    return weighted_attention(q, k, v, weight, xp=xp)


# Sliding tile attention ---------------------------------------------------------------------------


def tile_window_mask(grid, tile, window):
    """Which grid keys a grid query sees in sliding tile attention (arXiv 2502.04507).

    On each axis the tiles [start, start + w) with w = min(window, tiles) and
    start = clip(tile of the query - window // 2, 0, tiles - w); a key must be in the window on
    every axis. ``window`` is odd.
    """
    c = cell_coordinates(grid, tile)
    visible = np.ones((len(c), len(c)), bool)
    sizes = per_axis(window, grid)
    for axis, (tiles, size) in enumerate(zip(cell_counts(grid, tile), sizes)):
        if size % 2 == 0:
            raise ValueError("a window has an odd number of tiles")
        width = min(size, tiles)
        start = np.clip(c[:, axis] - size // 2, 0, tiles - width)[:, None]
        visible &= (start <= c[None, :, axis]) & (c[None, :, axis] < start + width)
    return visible


def tile_window(q, k, v, grid, tile, window, *, xp=np):
    """Sliding tile attention (arXiv 2502.04507): attention under ``tile_window_mask``."""
    q, k, v = inputs(xp, q, k, v)
    prefix = prefix_length(q.shape[1], grid)
    weight = with_prefix(tile_window_mask(grid, tile, window), prefix)
    return weighted_attention(q, k, v, weight, xp=xp)


# SVG2 and SVG-EAR ---------------------------------------------------------------------------------


def svg2_selection(q, k, query_clusters, key_clusters, counts, top_p=0.9, least=0.1):
    """Cluster pairs that SVG2 keeps (arXiv 2505.18875), bool [B, H, Cq, Ck], for ``svg_ear``.

    The mass of key cluster j for query cluster i is n_j e^{s qbar_i.kbar_j}, normalised over j.
    Kept: the fewest clusters, by mass, that reach ``top_p``, and at least
    max(1, int(least * Ck)). ``counts`` is (Cq, Ck). Empty clusters are never kept and, for an
    empty query cluster, nothing is.
    """
    q, k = inputs(np, q, k)
    prefix = q.shape[1] - np.shape(query_clusters)[-1]
    of_query = membership(query_clusters, counts[0])
    of_key = membership(key_clusters, counts[1])
    n_query, n_key = of_query.sum(-1), of_key.sum(-1)
    q_means, k_means = group_means(q[:, prefix:], of_query), group_means(k[:, prefix:], of_key)
    e = exponentials(q_means, k_means, n_key[:, :, None, :])
    mass = e / e.sum(-1, keepdims=True)
    order = np.argsort(-mass, axis=-1, kind="stable")
    ordered = np.take_along_axis(mass, order, -1)
    before = np.cumsum(ordered, -1) - ordered
    rank = np.arange(counts[1])
    kept = (before < top_p) | (rank < max(1, int(least * counts[1]))) | (top_p >= 1)
    selection = np.zeros(mass.shape, bool)
    np.put_along_axis(selection, order, kept, axis=-1)
    return selection & (n_key > 0)[:, :, None, :] & (n_query > 0)[..., None]


def svg_ear(q, k, v, query_clusters, key_clusters, selection, *, xp=np):
    """SVG-EAR (arXiv 2603.08982): exact cluster pairs, the others replaced by key centroids.

    ``query_clusters`` and ``key_clusters`` are int [B, H, N]; ``selection`` is bool
    [B, H, Cq, Ck]. For a query of cluster i, the tokens of the selected key clusters are exact;
    any other cluster j of n_j > 0 tokens adds n_j e^{s q.kbar_j} to the denominator and
    n_j e^{s q.kbar_j} vbar_j to the numerator. If the clusters name fewer than N tokens, the
    tokens before those are the prefix.
    """
    q, k, v = inputs(xp, q, k, v)
    query_clusters, key_clusters = np.asarray(query_clusters), np.asarray(key_clusters)
    selection = np.asarray(selection, bool)
    prefix = q.shape[1] - query_clusters.shape[-1]
    clusters = selection.shape[-1]
    member = membership(key_clusters, clusters)  # [B, H, Ck, tokens]

    selected = np.take_along_axis(selection, query_clusters[..., None], axis=2)  # of each query
    fine = np.take_along_axis(selected, key_clusters[:, :, None, :], axis=3).astype(float)
    coarse = ~selected * member.sum(-1)[:, :, None, :]
    weight = with_prefix(np.concatenate([fine, coarse], -1), prefix, clusters)

    keys = xp.concatenate([k, group_means(k[:, prefix:], member, xp)], axis=1)
    values = xp.concatenate([v, group_means(v[:, prefix:], member, xp)], axis=1)
    return weighted_attention(q, keys, values, weight, xp=xp)


# Windows, and PT-DiT ------------------------------------------------------------------------------


def window_mask(grid, window, shifted=False):
    """Which grid keys a grid query sees within windows (arXiv 2103.14030), bool [tokens, tokens].

    Both are in one window on every axis. Windows of w tokens begin at 0, w, 2 w, ...; shifted ones
    at s, s + w, ... with s = floor(w / 2), and the s tokens before are a window too.
    """
    p, sides = coordinates(grid), np.array(per_axis(window, grid))
    index = (p - sides // 2) // sides if shifted else p // sides
    return (index[:, None] == index[None]).all(-1)


def windows(q, k, v, grid, window, shifted=False, *, xp=np):
    """Window attention (arXiv 2103.14030): attention under ``window_mask``."""
    q, k, v = inputs(xp, q, k, v)
    prefix = prefix_length(q.shape[1], grid)
    weight = with_prefix(window_mask(grid, window, shifted), prefix)
    return weighted_attention(q, k, v, weight, xp=xp)


def proxy_tokens(x, grid, window, token="mean", *, xp=np):
    """A token of each window, [B, P, D], windows row-major: their mean or their first (2409.04005).

    ``x`` is [B, prod(grid), D].
    """
    ids = cell_ids(grid, window)
    count = math.prod(cell_counts(grid, window))
    if token == "mean":
        return group_means(x[:, :, None], membership(ids, count), xp)[:, :, 0]
    return x[:, [np.flatnonzero(ids == i)[0] for i in range(count)]]


def projected_attention(x, source, parameters, mask, *, xp=np):
    """Attention of tokens x [B, N, D] to ``source`` [B, M, D] with projections.

    ``parameters`` is (wq, bq, wk, bk, wv, bv, wo, bo), the first six [D, H, Dh] and [H, Dh], the
    last two [H, Dh, D] and [D]; ``mask`` is bool [N, M].
    """
    wq, bq, wk, bk, wv, bv, wo, bo = parameters
    q = xp.einsum("bnd,dhe->bnhe", x, wq) + bq
    k = xp.einsum("bnd,dhe->bnhe", source, wk) + bk
    v = xp.einsum("bnd,dhe->bnhe", source, wv) + bv
    mixed = weighted_attention(q, k, v, mask.astype(float), xp=xp)
    return xp.einsum("bnhe,hed->bnd", mixed, wo) + bo


def pt_dit_tokens(x, grid, vectors, parameters, proxy, window, token="mean", *, xp=np):
    """What PT-DiT's block does to tokens before its channel mixer (arXiv 2409.04005).

        p = proxies(x);  p = p + A(norm(p), norm(p));  x = x + A(norm(x), norm(p))
        x = x + gate1 A(mod1(norm(x))) within windows
        x = x + gate2 A(mod2(norm(x))) within shifted windows

    ``vectors`` are (shift1, scale1, gate1, shift2, scale2, gate2), each [B, 1, D]; ``parameters``
    those of ``projected_attention`` for the four attentions. norm is a layer norm without
    parameters, eps 1e-6; mod(y) = y (1 + scale) + shift.
    """

    def norm(y):
        y = y - y.mean(-1, keepdims=True)
        return y / xp.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)

    among, cross, own, shifted = parameters
    p = proxy_tokens(x, grid, proxy, token, xp=xp)
    all_proxies = np.ones((p.shape[1], p.shape[1]))
    p = p + projected_attention(norm(p), norm(p), among, all_proxies, xp=xp)
    all_pairs = np.ones((x.shape[1], p.shape[1]))
    x = x + projected_attention(norm(x), norm(p), cross, all_pairs, xp=xp)
    for i, weights in enumerate((own, shifted)):
        shift, scale, gate = vectors[3 * i : 3 * i + 3]
        y = norm(x) * (1 + scale) + shift
        mask = window_mask(grid, window, shifted=i == 1)
        x = x + gate * projected_attention(y, y, weights, mask, xp=xp)
    return x
