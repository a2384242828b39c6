"""Mix-FFN: a gated channel mixer that looks at neighbouring tokens."""

import math

import flax.linen as nn
import jax

from dit_jax.errors import InputError
from dit_jax.layers.context import Context
from dit_jax.layers.linear import linear
from dit_jax.parallel.depthwise import depthwise


class MixFFN(nn.Module):
    """Sana's feed-forward layer, "GLUMBConv" (arXiv 2410.10629): the locality of linear attention.

    An inverted bottleneck, SiLU, a 3x3 depthwise convolution, a gate value * silu(gate), and a
    projection without bias. All layers start as PyTorch's do when nothing is said, with biases of
    the convolution at zero.

    Attributes:
      ratio: width of the hidden layer, after gating, over the width of the tokens.
    """

    ratio: float = 2.5

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        """Maps tokens [B, N, D] on the context's grid to tokens [B, N, D] and an empty aux."""
        batch, tokens, width = x.shape
        if tokens != math.prod(context.grid):
            raise InputError(f"Mix-FFN wants the tokens of a grid {context.grid}, not {tokens}")
        hidden = int(self.ratio * width)
        x = nn.silu(linear((2, hidden), x, "gate_value", init="torch"))
        # Frames, if there are any, are convolved one by one.
        images = x.reshape(-1, *context.grid[-2:], 2, hidden)
        gate = _Depthwise(name="gate_conv")(images[..., 0, :])
        value = _Depthwise(name="value_conv")(images[..., 1, :])
        x = (value * nn.silu(gate)).reshape(batch, tokens, hidden)
        return linear(width, x, "out", init="torch", bias=False), {}


class _Depthwise(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        channels = images.shape[-1]
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel = self.param("kernel", init, (3, 3, 1, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return depthwise(images, kernel, "mixed_channels") + bias.astype(images.dtype)
