"""Full softmax attention."""

import dataclasses

from dit_jax.attention.mixer import TokenMixer
from dit_jax.kernels.softmax_attention import Implementation, softmax_attention


@dataclasses.dataclass(frozen=True)
class Full(TokenMixer):
    """Every token sees every token: softmax(q k^T / sqrt(Dh)) v, softmax in float32.

    Attributes:
      implementation: what computes it: XLA's einsums, cuDNN on a GPU, splash attention on a TPU, or
        whichever suits platform, shape and dtype.
    """

    implementation: Implementation = "auto"

    def __call__(self, q, k, v, grid):
        del grid
        return softmax_attention(q, k, v, self.implementation)
