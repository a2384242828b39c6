"""Moments of parts, merged, are those of the whole."""

import functools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dit_jax.latents.rae.moments import Moments


def moments(x):
    mean = x.mean(axis=0, dtype=np.float64)
    return Moments(len(x), mean, np.square(x - mean).sum(axis=0, dtype=np.float64))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 9))
def test_merged_parts_are_one_pass(sizes, seed):
    rng = np.random.default_rng(seed)
    # A mean far from zero, where the difference of two sums of squares would lose all digits.
    parts = [1e4 + rng.normal(size=(size, 3)) for size in (*sizes, 1)]
    whole = np.concatenate(parts)
    merged = functools.reduce(
        Moments.merge, [moments(part) for part in parts if len(part)], Moments.none((3,))
    )
    assert merged.count == len(whole)
    np.testing.assert_allclose(merged.mean, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.variance, whole.var(axis=0), rtol=1e-6, atol=1e-10)


def test_the_order_of_parts_makes_no_difference():
    x = np.random.default_rng(0).normal(size=(30, 4))
    a, b = moments(x[:7]), moments(x[7:])
    np.testing.assert_allclose(a.merge(b).squares, b.merge(a).squares, rtol=1e-12)
