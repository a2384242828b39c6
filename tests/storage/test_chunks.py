"""Parts fit their readers, and nothing is read twice."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.storage.chunks import choose_chunks


@st.composite
def problems(draw):
    """An array with old parts that divide it or not, and shards that divide it."""
    shape, old, shard = [], [], []
    for _ in range(draw(st.integers(0, 4))):
        pieces = draw(st.sampled_from([1, 2, 3, 4, 8]))
        size = pieces * draw(st.integers(1, 6))
        shape.append(size)
        shard.append(size // pieces)
        old.append(draw(st.integers(1, size)))
    return tuple(shape), tuple(old), tuple(shard), draw(st.sampled_from([4, 64, 1024, 1 << 20]))


@settings(deadline=None, max_examples=300)
@given(problems())
def test_parts_lie_within_shards_and_blocks_take_whole_parts(problem):
    shape, old, shard, target = problem
    made = choose_chunks(shape, 4, old, shard, target)
    whole = [o if n % o == 0 else n for n, o in zip(shape, old)]
    for n, new, block, was, part in zip(shape, made.chunk, made.block, whole, shard):
        assert part % new == 0 and n % block == 0
        assert block % new == 0 and block % was == 0
    assert math.prod(made.block) * 4 <= max(target, math.prod(whole) * 4)
    assert math.prod(made.chunk) * 4 <= max(target, 4)
    seen = np.zeros(shape, np.int32)
    for at in made.blocks(shape):
        seen[at] += 1
    assert (seen == 1).all()


def test_small_parts_are_joined_and_large_ones_cut():
    small = choose_chunks((28, 1152, 4608), 4, (28, 18, 4608), (28, 1152, 4608), 64 << 20)
    assert small.chunk == small.block == (28, 72, 4608)
    large = choose_chunks((28, 1152, 4608), 4, (28, 1152, 4608), (28, 144, 4608), 64 << 20)
    assert large.chunk == (14, 144, 4608) and large.block == (28, 1152, 4608)
    across = choose_chunks((28, 1152, 4608), 4, (28, 18, 4608), (28, 1152, 288), 16 << 20)
    assert across.chunk == (28, 18, 288) and across.block == (28, 18, 4608)
