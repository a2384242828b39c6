"""Linear layers as the papers initialise them."""

import math
from typing import Literal

import flax.linen as nn
import jax

Init = Literal["xavier", "torch", "zero"]


def linear(
    features: int | tuple[int, ...],
    x: jax.Array,
    name: str,
    *,
    axis: int | tuple[int, ...] = -1,
    init: Init = "xavier",
    bias: bool = True,
) -> jax.Array:
    """Applies a dense layer of the calling module, computed in the dtype of `x`.

    Parameters are float32: the compute dtype follows the activations, so a backbone sets it once,
    where it embeds its input.

    Args:
      features: output axes.
      x: input.
      name: name of the layer's parameters.
      axis: input axes to contract.
      init: weights Xavier uniform and biases zero, as DiT's; both uniform within 1 / sqrt(inputs),
        as PyTorch's when nothing is said; or both zero, so that the layer starts as nothing.
      bias: add a bias.
    """
    axes = (axis,) if isinstance(axis, int) else axis
    kernel_init, bias_init = _initializers(init, math.prod(x.shape[a] for a in axes))
    dense = nn.DenseGeneral(
        features,
        axis=axis,
        use_bias=bias,
        dtype=x.dtype,
        kernel_init=kernel_init,
        bias_init=bias_init,
        name=name,
    )
    return dense(x)


def _initializers(init: Init, inputs: int) -> tuple:
    zeros = nn.initializers.zeros
    if init == "torch":
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        bound = inputs**-0.5
        return uniform, lambda *args: bound * jax.random.uniform(*args, minval=-1, maxval=1)
    return (zeros if init == "zero" else nn.initializers.xavier_uniform()), zeros
