"""The dense channel mixer."""

import flax.linen as nn
import jax

from dit_jax.layers.context import Context
from dit_jax.layers.linear import linear


class Mlp(nn.Module):
    """A two-layer perceptron with tanh-approximated GELU.

    Attributes:
      ratio: width of the hidden layer over the width of the tokens.
    """

    ratio: float = 4.0

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        """Maps tokens [B, N, D] to tokens [B, N, D] and an empty aux."""
        del context  # A dense layer treats all tokens alike; routers look at the context.
        width = x.shape[-1]
        x = nn.gelu(linear(int(self.ratio * width), x, "fc1"), approximate=True)
        return linear(width, x, "fc2"), {}
