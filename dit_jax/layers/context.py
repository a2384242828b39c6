"""What every block of a stack sees besides the tokens."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Context:
    """The condition of one forward pass.

    `t`, `time` and `conditional` are None in a stack whose blocks look at `vector` alone.

    Attributes:
      vector: embedded time and condition, [B, D] or, token by token, [B, N, D]; compute dtype.
      t: time [B], in the model's own clock.
      time: embedded time alone, [B, D], compute dtype.
      conditional: whether each sample has a condition, [B] bool: its label is not the null label,
        dropped labels counted as null.
      grid: token grid, static.
      train: whether this is a training pass.
    """

    vector: jax.Array
    t: jax.Array | None
    time: jax.Array | None
    conditional: jax.Array | None
    grid: tuple[int, ...]
    train: bool
