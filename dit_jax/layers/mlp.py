"""The dense channel mixers."""

import flax.linen as nn
import jax

from dit_jax.layers.context import Context
from dit_jax.layers.linear import Init, linear


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


class SwiGLU(nn.Module):
    """A gated perceptron, silu(gate) * value (arXiv 2002.05202).

    Attributes:
      ratio: width that a plain perceptron would have, over the width of the tokens; two thirds of
        it, so that the three matrices are as large as the plain one's two.
      bias: biases of all layers.
      initial: initialisation of all layers.
    """

    ratio: float = 4.0
    bias: bool = True
    initial: Init = "xavier"

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        """Maps tokens [B, N, D] to tokens [B, N, D] and an empty aux."""
        del context
        width = x.shape[-1]
        hidden = int(2 * int(self.ratio * width) / 3)
        options = {"bias": self.bias, "init": self.initial}
        gate_value = linear((2, hidden), x, "gate_value", **options)
        x = nn.silu(gate_value[..., 0, :]) * gate_value[..., 1, :]
        return linear(width, x, "out", **options), {}
