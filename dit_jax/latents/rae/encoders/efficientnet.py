"""EfficientNet-Lite0: a small network with weights that need no model hub, a stand-in.

No representation autoencoder was published with it; for what the papers report take DINOv2. Source:
EfficientNet (Tan & Le, arXiv 1905.11946); Lite leaves out squeeze-and-excitation and has ReLU6 for
swish.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.latents.rae.encoders.vit import layer_norm
from dit_jax.layers.patch import patch_grid

_STEM = 32
# The network's batch norms, as TensorFlow's are by default.
_EPS = 1e-3


@dataclasses.dataclass(frozen=True)
class Stage:
    """A row of the table of the paper.

    Attributes:
      width: output channels.
      blocks: number of blocks.
      kernel: side of the depthwise kernels.
      stride: of the first block.
      expansion: how much wider the inside of a block is than its input.
    """

    width: int
    blocks: int
    kernel: int
    stride: int
    expansion: int


# Two more follow, of 192 and 320 channels, and a classifier.
STAGES = (
    Stage(16, 1, 3, 1, 1),
    Stage(24, 2, 3, 2, 6),
    Stage(40, 2, 5, 2, 6),
    Stage(80, 3, 3, 2, 6),
    Stage(112, 3, 5, 1, 6),
)


class EfficientNetFeatures(nn.Module):
    """What stands after each of the first five stages of EfficientNet-Lite0.

    It is for a perceptual distance or a discriminator, and has the parameters of
    `EfficientNetLite0`. Images are normalised before they come here, by `mean` and `std`, per
    channel of values in [0, 1].
    """

    # Of pixels up to 255 they are 127 and 128, and not ImageNet's.
    mean: ClassVar[tuple[float, float, float]] = 3 * (127 / 255,)
    std: ClassVar[tuple[float, float, float]] = 3 * (128 / 255,)

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Maps normalised images [B, H, W, 3] to float32 maps [B, h, w, C].

        Their strides are 2, 4, 8, 16 and 16, their channels 16, 24, 40, 80 and 112.
        """
        x = NormedConv(_STEM, 3, stride=2, name="stem")(images.astype(jnp.float32))
        x, found, number = nn.relu6(x), [], 0
        for stage in STAGES:
            for i in range(stage.blocks):
                stride = 1 if i else stage.stride
                block = InvertedBottleneck(
                    stage.width, stage.kernel, stride, stage.expansion, name=f"block_{number}"
                )
                x, number = block(x), number + 1
            found.append(x)
        return found


class EfficientNetLite0(EfficientNetFeatures):
    """The first five stages of EfficientNet-Lite0 as an encoder: a token every 16 pixels.

    A token sees far more than its own 16x16 pixels.
    """

    patch: ClassVar[int] = 16
    hidden: ClassVar[int] = STAGES[-1].width

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images.

        Args:
          images: [B, H, W, 3], float, normalised; H and W multiples of 16.

        Returns:
          Tokens [B, N, 112], row-major, of zero mean and unit variance, float32.

        Raises:
          InputError: the images do not divide into patches.
        """
        rows, columns = patch_grid(images.shape, self.patch)
        *_, last = super().__call__(images)
        tokens = last.reshape(len(images), rows * columns, self.hidden)
        return layer_norm(tokens, "norm", 1e-6, affine=False)


class InvertedBottleneck(nn.Module):
    """MobileNetV2's block (arXiv 1801.04381): wider, a depthwise convolution, narrower again.

    Attributes:
      width: output channels.
      kernel: side of the depthwise kernel.
      stride: of the depthwise convolution.
      expansion: how much wider the inside is than the input; 1 has no layer for it.
    """

    width: int
    kernel: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h / stride, w / stride, width]; adds the input where it fits."""
        inside = self.expansion * x.shape[-1]
        y = x
        if self.expansion > 1:
            y = nn.relu6(NormedConv(inside, 1, name="expand")(y))
        y = NormedConv(inside, self.kernel, self.stride, depthwise=True, name="depthwise")(y)
        y = NormedConv(self.width, 1, name="project")(nn.relu6(y))
        return x + y if x.shape == y.shape else y


class NormedConv(nn.Module):
    """A convolution without bias, and a batch norm (arXiv 1502.03167) with stored statistics.

    Attributes:
      features: output channels.
      kernel: side of the kernel.
      stride: step of the kernel.
      depthwise: every channel by itself; there are as many before and after.
    """

    features: int
    kernel: int
    stride: int = 1
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h / stride, w / stride, features], rounded up."""
        inputs = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel, self.kernel, inputs, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        names = {"scale": ones, "bias": zeros, "mean": zeros, "variance": ones}
        scale, bias, mean, variance = (
            self.param(name, init, (self.features,)) for name, init in names.items()
        )
        x = (depthwise_conv if self.depthwise else conv)(x, kernel, self.stride)
        return (x - mean) * (scale * jax.lax.rsqrt(variance + _EPS)) + bias


def conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves [B, h, w, C] with [k, k, C, D], padded as TensorFlow's "SAME"."""
    if kernel.shape[:2] == (1, 1):
        return x[:, ::stride, ::stride] @ kernel[0, 0]  # Twice as fast on a CPU.
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions
    )


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves every channel of [B, h, w, C] by itself with [k, k, 1, C], padded the same way."""
    sides = [-(-size // stride) for size in x.shape[1:3]]
    spans = [(side - 1) * stride + 1 for side in sides]
    pads = [max(span + len(kernel) - 1 - n, 0) for span, n in zip(spans, x.shape[1:3])]
    x = jnp.pad(x, [(0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)])
    # XLA's grouped convolution takes ten times as long on a CPU, and more, as this sum of products.
    return sum(
        x[:, i : i + spans[0] : stride, j : j + spans[1] : stride] * kernel[i, j, 0]
        for i in range(len(kernel))
        for j in range(len(kernel))
    )
