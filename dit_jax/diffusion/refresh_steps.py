"""At which steps to refresh a cache: those that keep what is used most like what would have been.

DDT, arXiv 2504.05741. A step uses what the last refresh before it computed; of all choices of so
many refreshes, the best has the greatest sum of cosine similarities between what each step uses and
what it would have computed itself.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.errors import InputError


def token_similarity(tokens: jax.Array) -> jax.Array:
    """Mean cosine similarity between steps of the tokens [T, B, N, D]: [T, T], float32."""
    tokens = tokens.astype(jnp.float32)
    length = jnp.linalg.norm(tokens, axis=-1, keepdims=True)
    tokens = tokens / jnp.maximum(length, jnp.finfo(jnp.float32).tiny)
    return jnp.einsum("ibnd,jbnd->ij", tokens, tokens) / (tokens.shape[1] * tokens.shape[2])


def choose_steps(similarity: np.ndarray, budget: int) -> tuple[int, ...]:
    """Chooses the steps to refresh at, by dynamic programming: exact, in O(T^2 budget).

    Args:
      similarity: [T, T]; row i, column j > i: how like step j's own is what step i computes.
      budget: number of refreshes, from 1 to T; the first is at step 0.

    Raises:
      InputError: the budget is none.
    """
    steps = len(similarity)
    check_budget(budget, steps)
    # served[i, j]: what a refresh at step i is worth if the next one is at step j.
    served = np.zeros((steps, steps + 1))
    served[:, 1:] = np.cumsum(np.triu(np.asarray(similarity, np.float64)), axis=1)
    served[np.tril_indices(steps, 0, steps + 1)] = -np.inf
    best, before = served[0], []  # best[j]: of the steps before j, with so many refreshes.
    for _ in range(budget - 1):
        worth = best[:steps, None] + served
        before.append(worth.argmax(axis=0))
        best = worth.max(axis=0)
    chosen = [steps]
    for previous in reversed(before):
        chosen.append(int(previous[chosen[-1]]))
    return (0, *reversed(chosen[1:]))


def check_budget(budget: int, evaluations: int) -> None:
    """Raises InputError where so many of the evaluations cannot be chosen."""
    if not 1 <= budget <= evaluations:
        raise InputError(
            f"a budget of {budget} for {evaluations} evaluations: give 1 to {evaluations}"
        )


def mean_similarity(similarity: np.ndarray, refreshes: np.ndarray) -> float:
    """Mean over the steps of how like their own is what they use, given where refreshes are [T]."""
    numbers = np.arange(len(refreshes))
    used = np.maximum.accumulate(np.where(refreshes, numbers, 0))
    return float(np.mean(np.asarray(similarity, np.float64)[used, numbers]))
