"""Where random numbers come from: a key for every (seed, step, purpose).

No key is carried from step to step, so a resumed run draws what the uninterrupted one would have.
"""

import enum

import jax


class Purpose(enum.IntEnum):
    """What a key is for; numbers are part of what makes a run, so they never change."""

    INIT = 0
    ENCODE = 1
    TIME = 2
    NOISE = 3
    DROPOUT = 4
    CROP = 5
    AUGMENT = 6


def key_for(seed: int, step: jax.Array | int, purpose: Purpose) -> jax.Array:
    """Returns the key of a purpose at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), purpose)
