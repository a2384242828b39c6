import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.errors import InputError
from dit_jax.kernels.block_sparse import (
    CoarseKeys,
    KeyLists,
    block_sparse_attention,
    gather,
    reference,
    tpu,
)

BATCH, HEADS, WIDTH, QUERY_BLOCK, KEY_BLOCK = 2, 2, 8, 8, 16


def random_lists(rng, batched=True, query_blocks=4, key_blocks=3, longest=3, masks=0, least=1):
    lead = (BATCH, HEADS) if batched else ()
    order = np.argsort(rng.random((*lead, query_blocks, key_blocks)), axis=-1)
    indices = order[..., :longest].astype(np.int32)
    patterns = rng.random((masks, QUERY_BLOCK, KEY_BLOCK)) < 0.7
    return KeyLists(
        indices=jnp.asarray(indices),
        counts=jnp.asarray(rng.integers(least, longest + 1, indices.shape[:-1]), jnp.int32),
        query_block=QUERY_BLOCK,
        key_block=KEY_BLOCK,
        masks=jnp.asarray(patterns) if masks else None,
        mask_ids=jnp.asarray(rng.integers(0, masks, indices.shape)) if masks else None,
    )


def random_coarse(rng, groups, weights, keys=5, shared=True):
    k, v = rng.normal(size=(2, BATCH, HEADS, groups, keys, WIDTH)).astype(np.float32)
    lead = (1, 1) if shared else (BATCH, HEADS)
    weight = rng.normal(size=(*lead, weights, keys)).astype(np.float32)
    weight[..., 1:][rng.random(weight[..., 1:].shape) < 0.3] = -np.inf
    return CoarseKeys(*map(jnp.asarray, (k, v, weight)))


def random_tokens(rng, lists, keys=3 * KEY_BLOCK, batch=BATCH, heads=HEADS):
    queries = lists.indices.shape[-2] * lists.query_block
    sizes = (queries, keys, keys)
    return [jnp.asarray(rng.normal(size=(batch, heads, n, WIDTH)), jnp.float32) for n in sizes]


def with_regions():
    """Four regions of 16 blocks of 16, of which each region of queries draws from two."""
    rng = np.random.default_rng(5)
    regions = np.argsort(rng.random((1, 2, 2, 4)), axis=-1)[..., :2]
    candidates = (regions[..., None] * 16 + np.arange(16)).reshape(1, 2, 2, 1, 32)
    candidates = np.broadcast_to(candidates, (1, 2, 2, 16, 32))
    indices = rng.permuted(candidates, axis=-1)[..., :3].reshape(1, 2, 32, 3)
    lists = KeyLists(
        indices=jnp.asarray(indices, jnp.int32),
        counts=jnp.asarray(rng.integers(1, 4, (1, 2, 32)), jnp.int32),
        query_block=16,
        key_block=16,
        regions=jnp.asarray(regions, jnp.int32),
        region_blocks=16,
    )
    return (*random_tokens(rng, lists, keys=1024, batch=1, heads=2), lists, ())


def problem(lists=None, *coarse, seed=0):
    rng = np.random.default_rng(seed)
    lists = random_lists(rng, **(lists or {}))
    coarse = tuple(random_coarse(rng, **sizes) for sizes in coarse)
    return (*random_tokens(rng, lists), lists, coarse)


PROBLEMS = {
    "ragged lists": problem(),
    "lists for all heads": problem({"batched": False}),
    "masks": problem({"masks": 3}),
    "static masks": problem({"batched": False, "masks": 3}),
    "coarse keys for all": problem({}, {"groups": 1, "weights": 1}),
    "coarse keys, own weights": problem({}, {"groups": 1, "weights": 4, "shared": False}),
    "coarse keys by group": problem({"masks": 2}, {"groups": 2, "weights": 4}),
    "coarse keys, weights for some blocks": problem({}, {"groups": 1, "weights": 2}),
    "several sets of coarse keys": problem(
        {},
        {"groups": 1, "weights": 1, "keys": 2},
        {"groups": 2, "weights": 4, "keys": 3},
        {"groups": 4, "weights": 4, "keys": 1, "shared": False},
    ),
    "empty lists": problem({"least": 0}, {"groups": 1, "weights": 1}),
    "regions": with_regions(),
}


def gradients(forward, q, k, v, lists, coarse, backward=None):
    """Results, and gradients of their products with cotangents, of all that has one."""
    rng = np.random.default_rng(9)
    dout, dlse = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (q.shape, q.shape[:3]))
    pairs = [(c.k, c.v) for c in coarse]

    def function(q, k, v, pairs):
        own = (CoarseKeys(*pair, c.log_weight) for pair, c in zip(pairs, coarse, strict=True))
        return forward(q, k, v, lists, tuple(own))

    @jax.jit
    def run(*args):
        if backward is None:
            results, pull = jax.vjp(function, *args)
            return *results, *pull((dout, dlse))
        results = function(*args)
        return *results, *backward(*args[:3], lists, coarse, *results, dout, dlse)

    return jax.tree.leaves(run(q, k, v, pairs))


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@functools.cache
def by_definition(name):
    return gradients(reference.forward, *PROBLEMS[name])


@pytest.mark.parametrize("name", PROBLEMS)
def test_gathers_follow_the_definition(name):
    def forward(q, k, v, lists, coarse):
        return block_sparse_attention(q, k, v, lists, *coarse)

    assert_close(gradients(forward, *PROBLEMS[name]), by_definition(name))


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_tpu_kernels_follow_the_definition(name, monkeypatch):
    # Fewer blocks at once: two tiles a list, of which the second is not full, and less to compile.
    monkeypatch.setattr(tpu.plan, "_LOADS", 2)
    forward = functools.partial(tpu.forward, interpret=True)
    backward = functools.partial(tpu.backward, interpret=True)
    found = gradients(forward, *PROBLEMS[name], backward=backward)
    assert_close(found, by_definition(name))


@pytest.mark.parametrize("name", ["masks", "coarse keys for all", "coarse keys by group"])
def test_taking_some_queries_at_a_time_changes_nothing(name, monkeypatch):
    monkeypatch.setattr(gather, "_ELEMENTS", 2000)
    assert_close(gradients(gather.forward, *PROBLEMS[name]), by_definition(name))


@settings(max_examples=8, deadline=None)
@given(
    query_blocks=st.integers(1, 3),
    key_blocks=st.integers(1, 3),
    longest=st.integers(1, 3),
    masks=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_any_lists(query_blocks, key_blocks, longest, masks, seed):
    rng = np.random.default_rng(seed)
    shape = {"query_blocks": query_blocks, "key_blocks": key_blocks, "masks": masks}
    lists = random_lists(rng, longest=min(longest, key_blocks), **shape)
    tokens = random_tokens(rng, lists, keys=key_blocks * KEY_BLOCK)
    found = block_sparse_attention(*tokens, lists)
    assert_close(found, reference.forward(*tokens, lists, ()))


def test_coarse_keys_count_as_the_tokens_that_they_stand_for():
    q, k, v, lists, _ = problem({"key_blocks": 3, "longest": 3})
    lists = KeyLists(
        indices=lists.indices, counts=lists.counts * 0 + 3, query_block=8, key_block=16
    )
    k, v = (jnp.repeat(x[:, :, ::16], 16, axis=2) for x in (k, v))
    expected = block_sparse_attention(q, k, v, lists)
    none = KeyLists(indices=lists.indices, counts=lists.counts * 0, query_block=8, key_block=16)
    weight = jnp.full((1, 1, 1, 3), np.log(16), jnp.float32)
    coarse = CoarseKeys(k[:, :, None, ::16], v[:, :, None, ::16], weight)
    assert_close(block_sparse_attention(q, k, v, none, coarse), expected)


def test_lists_that_do_not_fit_are_refused():
    q, k, v, lists, _ = problem()
    with pytest.raises(InputError, match="24 queries"):
        block_sparse_attention(q[:, :, :24], k, v, lists)
    with pytest.raises(InputError, match="40 keys"):
        block_sparse_attention(q, k[:, :, :40], v[:, :, :40], lists)
    lists = KeyLists(
        indices=lists.indices,
        counts=lists.counts,
        query_block=8,
        key_block=16,
        mask_ids=lists.indices,
    )
    with pytest.raises(InputError, match="both"):
        block_sparse_attention(q, k, v, lists)


def lowered(platform):
    q, k, v, lists, _ = with_regions()
    coarse = CoarseKeys(k[:, :, None, :128], v[:, :, None, :128], jnp.zeros((1, 1, 1, 128)))

    @jax.jit
    def gradient(q, k, v):
        return jax.grad(lambda *x: block_sparse_attention(*x, lists, coarse)[0].sum(), (0, 1))(
            q, k, v
        )

    return gradient.trace(q, k, v).lower(lowering_platforms=(platform,)).as_text()


def test_programs_for_a_tpu_have_its_kernels(monkeypatch):
    assert "tpu_custom_call" not in lowered("tpu")  # On several devices, which we have here.
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert lowered("tpu").count("tpu_custom_call") == 3
    assert "tpu_custom_call" not in lowered("cpu")


def test_what_does_not_fit_into_a_tpus_memory_is_gathered():
    lists = KeyLists(
        indices=jnp.zeros((1, 1), jnp.int32),
        counts=jnp.ones((1,), jnp.int32),
        query_block=16,
        key_block=16,
    )

    def takes(tokens, width, dtype=jnp.bfloat16, **changes):
        x = jax.ShapeDtypeStruct((1, 1, tokens, width), dtype)
        return tpu.takes(x, x, KeyLists(**(vars(lists) | changes)))

    assert takes(65_536, 64) and takes(65_536, 128)
    assert not takes(131_072, 64) and not takes(65_536, 64, jnp.float32)
    assert not takes(1024, 64, query_block=8) and not takes(1024, 64, key_block=24)

    def lists_of(entries, heads):
        shape = (1, heads, 1024)
        indices, counts = jnp.zeros((*shape, entries), jnp.int32), jnp.zeros(shape, jnp.int32)
        return {"indices": indices, "counts": counts, "query_block": 64, "key_block": 64}

    assert takes(65_536, 64, **lists_of(96, 2)) and takes(65_536, 64, **lists_of(160, 1))
    assert not takes(65_536, 64, **lists_of(160, 2))
