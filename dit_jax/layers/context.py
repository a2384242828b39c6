"""What every block of a stack sees besides the tokens."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Context:
    """The condition of one forward pass.

    Attributes:
      vector: embedded time and condition, [B, D], compute dtype.
      t: time [B], in the model's own clock.
      condition: what the model was called with, e.g. `label` [B] int32.
      grid: token grid, static.
      train: whether this is a training pass.
    """

    vector: jax.Array
    t: jax.Array
    condition: dict[str, Any]
    grid: tuple[int, ...]
    train: bool
