"""LiT: linear attention beside a convolution of the values."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.attention.mixer import TokenMixer
from dit_jax.errors import InputError
from dit_jax.kernels.linear_attention import linear_attention
from dit_jax.parallel.depthwise import depthwise
from dit_jax.parallel.sharding import on_each_device

_EPS = 1e-6


@TokenMixer.register
class LiT(nn.Module):
    """ReLU linear attention plus a depthwise convolution of the values, which keeps detail.

    "LiT: Delving into a Simple Linear Diffusion Transformer for Image Generation" (arXiv
    2501.12976). The paper has few heads, 2 to 4; and no public code: the features, relu(x) + 1e-6,
    the denominator, whose 1e-6 is added to a mean over the tokens, and that all heads share one
    convolution are those of the authors' later work, LINA.

    The convolution starts at zero, which is this library's choice: then the module starts as linear
    attention, and its first step already moves the convolution. It has no bias: the projection that
    follows has one.

    Attributes:
      kernel: side of the convolution's window, in tokens; odd.
    """

    kernel: int = 5

    @nn.compact
    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, grid: tuple[int, ...]
    ) -> jax.Array:
        """Mixes q, k, v [B, N, H, Dh] as a `TokenMixer` does; frames are convolved one by one."""
        tokens, heads, width = v.shape[1:]
        if tokens != math.prod(grid):
            raise InputError(f"LiT's convolution wants the tokens of a grid {grid}, not {tokens}")
        attend = functools.partial(linear_attention, offset=_EPS, eps=_EPS * tokens)
        mixed = on_each_device(attend, "batch", None, "mixed_heads", None)(q, k, v)
        shape = (self.kernel, self.kernel, 1, width)
        kernel = self.param("conv_kernel", nn.initializers.zeros, shape)
        images = v.reshape(-1, *grid[-2:], heads * width)
        images = depthwise(images, jnp.tile(kernel, heads), "mixed_channels")
        return mixed + images.reshape(v.shape)
