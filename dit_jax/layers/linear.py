"""Linear layers as DiT initialises them."""

import flax.linen as nn
import jax


def linear(
    features: int | tuple[int, ...],
    x: jax.Array,
    name: str,
    *,
    axis: int | tuple[int, ...] = -1,
    zero: bool = False,
) -> jax.Array:
    """Applies a dense layer of the calling module, computed in the dtype of `x`.

    Weights are Xavier uniform (or zero), biases zero, parameters float32: the compute dtype follows
    the activations, so a backbone sets it once, where it embeds its input.

    Args:
      features: output axes.
      x: input.
      name: name of the layer's parameters.
      axis: input axes to contract.
      zero: initialise with zeros, so that the layer starts as no contribution.
    """
    init = nn.initializers.zeros if zero else nn.initializers.xavier_uniform()
    dense = nn.DenseGeneral(features, axis=axis, dtype=x.dtype, kernel_init=init, name=name)
    return dense(x)
