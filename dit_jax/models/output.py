"""What every backbone returns."""

from typing import Any, NamedTuple

import jax


class Output(NamedTuple):
    """The result of one forward pass.

    Attributes:
      prediction: [B, H, W, C] in float32; C is twice the input's where the model also predicts a
        variance, which comes second.
      aux: `losses` (added to the training loss), `metrics` (to log), `statistics` (zeros whose
        gradients move statistics), each a dict of arrays with the layer as axis 0 or of scalars,
        all optional; and whatever else a family offers, such as an MoE's `routing`.
    """

    prediction: jax.Array
    aux: dict[str, Any]
