import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dit_jax.diffusion import choose_steps, mean_similarity, token_similarity
from dit_jax.errors import InputError

cosines = st.floats(-1, 1, width=32)
any_order = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@st.composite
def similarities(draw, largest=9):
    """What a matrix of cosines may be: 1 on the diagonal, and nothing above that."""
    steps = draw(st.integers(1, largest))
    similarity = draw(arrays.arrays(np.float32, (steps, steps), elements=cosines))
    np.fill_diagonal(similarity, 1)
    return similarity


def total(similarity, steps):
    """The sum of what each step is worth, one after another."""
    worth, last = 0.0, None
    for step in range(len(similarity)):
        last = step if step in steps else last
        worth += float(similarity[last, step])
    return worth


@any_order
@given(similarities(), st.data())
def test_no_other_choice_is_better(similarity, data):
    count = len(similarity)
    budget = data.draw(st.integers(1, count))
    chosen = choose_steps(similarity, budget)
    assert chosen[0] == 0 and list(chosen) == sorted(set(chosen)) and len(chosen) == budget
    assert all(type(step) is int and step < count for step in chosen)
    others = itertools.combinations(range(1, count), budget - 1)
    best = max(total(similarity, {0, *rest}) for rest in others)
    assert total(similarity, chosen) == pytest.approx(best, abs=1e-9)


@any_order
@given(similarities())
def test_a_greater_budget_is_never_worse(similarity):
    worth = [total(similarity, choose_steps(similarity, b + 1)) for b in range(len(similarity))]
    assert (np.diff(worth) >= -1e-9).all()
    assert worth[-1] == pytest.approx(len(similarity))


@any_order
@given(similarities(), st.integers(1, 4))
def test_mean_similarity_is_the_sums(similarity, every):
    refreshes = np.arange(len(similarity)) % every == 0
    expected = total(similarity, set(np.flatnonzero(refreshes))) / len(similarity)
    assert mean_similarity(similarity, refreshes) == pytest.approx(expected, abs=1e-9)


def test_refreshes_go_where_things_change():
    """Steps in three groups, alike within and unlike between them."""
    group = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    similarity = (group[:, None] == group).astype(np.float32)
    assert choose_steps(similarity, 3) == (0, 4, 6)


def test_a_long_grid_is_quick_and_what_lies_below_the_diagonal_is_not_looked_at():
    rng = np.random.default_rng(0)
    similarity = np.triu(rng.uniform(size=(250, 250)))
    below = np.tril(np.full((250, 250), 99.0), -1)
    assert choose_steps(similarity + below, 50) == choose_steps(similarity, 50)


@pytest.mark.parametrize("budget", [0, 5, -1])
def test_a_budget_outside_the_steps_is_refused(budget):
    with pytest.raises(InputError, match="give 1 to 4"):
        choose_steps(np.eye(4), budget)


def test_token_similarity_is_the_mean_cosine():
    tokens = np.random.default_rng(0).normal(size=(4, 2, 3, 5)).astype(np.float32)
    expected = np.zeros((4, 4))
    for i, j, b, n in np.ndindex(4, 4, 2, 3):
        u, v = tokens[i, b, n], tokens[j, b, n]
        expected[i, j] += u @ v / np.linalg.norm(u) / np.linalg.norm(v) / 6
    found = token_similarity(jnp.asarray(tokens))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    low = token_similarity(jnp.asarray(tokens, jnp.bfloat16))
    np.testing.assert_allclose(low, expected, atol=0.01)
