"""What every backbone returns."""

from typing import Any, NamedTuple

import jax


class Output(NamedTuple):
    """The result of one forward pass.

    Attributes:
      prediction: [B, H, W, C] in float32; C is twice the input's where the model also predicts a
        variance, which comes second.
      aux: `losses` (scalars added to the training loss) and `metrics` (scalars to log), both
        optional, and whatever else a family offers.
    """

    prediction: jax.Array
    aux: dict[str, Any]
