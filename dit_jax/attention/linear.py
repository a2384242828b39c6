"""Linear attention: a token sees a summary of all others."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from dit_jax.attention.mixer import TokenMixer
from dit_jax.errors import InputError
from dit_jax.kernels.linear_attention import linear_attention
from dit_jax.parallel.sharding import on_each_device


@dataclasses.dataclass(frozen=True)
class LinearAttention(TokenMixer):
    """phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)): time and memory linear in the tokens.

    With a power of 1, phi is the ReLU: Sana (arXiv 2410.10629). With another it is the focused
    function of FLatten Transformer (arXiv 2308.00442), whose authors choose 3; its
    convolution of the values is that of `LiT`.

    Attributes:
      power: exponent of the features, at least 1; a larger one makes the weights sharper.
    """

    power: float = 1.0

    def __call__(self, q, k, v, grid):
        del grid
        if self.power < 1:
            raise InputError(f"a power of linear attention is at least 1, not {self.power}")
        if self.power != 1:
            q, k = focus(q, self.power), focus(k, self.power)
        # The addend of the denominator is that of Sana's configurations.
        attend = functools.partial(linear_attention, eps=1e-8)
        return on_each_device(attend, "batch", None, "mixed_heads", None)(q, k, v)


def focus(x: jax.Array, power: float) -> jax.Array:
    """Turns relu(x) towards its largest entries: relu(x)^power, at the length of relu(x).

    Args:
      x: vectors in the last axis.
      power: at least 1, which leaves relu(x) as it is.

    Returns:
      Like `x`; computed in float32.
    """
    y = jax.nn.relu(x.astype(jnp.float32))
    # The result does not depend on the scale that powers are taken at; this one cannot overflow.
    scale = jax.lax.stop_gradient(y.max(-1, keepdims=True))
    y = y / jnp.where(scale > 0, scale, 1)
    turned = y**power
    # Either sum is at least 1, but for a vector that has no positive entry.
    before, after = (jnp.maximum(jnp.square(a).sum(-1, keepdims=True), 0.5) for a in (y, turned))
    return (scale * turned * jnp.sqrt(before / after)).astype(x.dtype)
