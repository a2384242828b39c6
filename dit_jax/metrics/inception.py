"""Inception-v3 as FID has it: TensorFlow's graph of 2015-12-05 (arXiv 1512.00567, 1706.08500).

It is not the network that torchvision has: its weights are others, its average pools leave the
padding out of the mean, its last block has a maximum for the average, and it knows 1008 classes.
The blocks and layers are named as torchvision and pytorch-fid name them.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

# Features of two libraries are compared, so nothing is rounded to bfloat16 or TF32.
_PRECISION = jax.lax.Precision.HIGHEST
_EPS = 1e-3
CLASSES = 1008
_SPATIAL_BLOCK, _SPATIAL_CHANNELS = "Mixed_6d", 7

# The convolutions before the blocks.
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")

# Pools of 3x3; the last one has stride 2 and no padding.
Pool = Literal["average", "maximum", "shrink"]


class Conv(NamedTuple):
    """A convolution in a branch: its width, the kernel's rows and columns, and its stride."""

    width: int
    rows: int = 1
    columns: int = 1
    stride: int = 1


class Branch(NamedTuple):
    """One way through a block.

    Attributes:
      name: what pytorch-fid calls it; where it has several convolutions, their numbers follow.
      convs: its convolutions in order.
      pool: what comes before them.
      fork: width of two convolutions that follow them side by side, of 1x3 and 3x1; 0 for none.
    """

    name: str
    convs: tuple[Conv, ...]
    pool: Pool | None = None
    fork: int = 0

    def names(self) -> list[str]:
        """Names of all its convolutions, the fork's last."""
        count = len(self.convs)
        if count == 1 and not self.fork:
            return [self.name]
        forked = [f"{self.name}_{count + 1}{side}" for side in "ab"] if self.fork else []
        return [f"{self.name}_{number}" for number in range(1, count + 1)] + forked


def _block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        Branch("branch1x1", (Conv(64),)),
        Branch("branch5x5", (Conv(48), Conv(64, 5, 5))),
        Branch("branch3x3dbl", (Conv(64), Conv(96, 3, 3), Conv(96, 3, 3))),
        Branch("branch_pool", (Conv(pooled),), "average"),
    )


def _block_c(width: int) -> tuple[Branch, ...]:
    row, column = Conv(width, 1, 7), Conv(width, 7, 1)
    return (
        Branch("branch1x1", (Conv(192),)),
        Branch("branch7x7", (Conv(width), row, Conv(192, 7, 1))),
        Branch("branch7x7dbl", (Conv(width), column, row, column, Conv(192, 1, 7))),
        Branch("branch_pool", (Conv(192),), "average"),
    )


def _block_e(pool: Pool) -> tuple[Branch, ...]:
    return (
        Branch("branch1x1", (Conv(320),)),
        Branch("branch3x3", (Conv(384),), fork=384),
        Branch("branch3x3dbl", (Conv(448), Conv(384, 3, 3)), fork=384),
        Branch("branch_pool", (Conv(192),), pool),
    )


BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": (
        Branch("branch3x3", (Conv(384, 3, 3, 2),)),
        Branch("branch3x3dbl", (Conv(64), Conv(96, 3, 3), Conv(96, 3, 3, 2))),
        Branch("branch_pool", (), "shrink"),
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": (
        Branch("branch3x3", (Conv(192), Conv(320, 3, 3, 2))),
        Branch("branch7x7x3", (Conv(192), Conv(192, 1, 7), Conv(192, 7, 1), Conv(192, 3, 3, 2))),
        Branch("branch_pool", (), "shrink"),
    ),
    "Mixed_7b": _block_e("average"),
    "Mixed_7c": _block_e("maximum"),
}


class InceptionFeatures(NamedTuple):
    """What the metrics look at, float32.

    Attributes:
      pool: [B, 2048], the mean over positions after the last block (`pool_3:0` in the graph), for
        FID, KID, precision and recall.
      spatial: [B, 2023], for sFID (arXiv 2103.03841): the first 7 channels of 17x17 positions,
        flattened in the order of rows, columns, channels, of ADM's `mixed_6/conv:0`. The graph's
        blocks are numbered from `mixed`, which is Mixed_5b, so this is branch1x1 of Mixed_6d; a
        layer's bare name is that of its last node there, after the batch norm and the ReLU. The
        graph's list of nodes and issue 109 of ADM's repository (guided-diffusion) agree on it.
      logits: [B, 1008], for the Inception Score, without the bias that the graph's own classifier
        adds: TensorFlow's and ADM's evaluators multiply by its weights alone.
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array


class InceptionV3(nn.Module):
    """The whole network, for inference."""

    @nn.compact
    def __call__(self, images: jax.Array) -> InceptionFeatures:
        """Maps images [B, 299, 299, 3], (pixel - 128) / 128, float32, to features."""
        x = NormedConv(32, (3, 3), 2, "VALID", name=STEM[0])(images)
        x = NormedConv(32, (3, 3), 1, "VALID", name=STEM[1])(x)
        x = NormedConv(64, (3, 3), name=STEM[2])(x)
        x = _pool(x, "shrink")
        x = NormedConv(80, (1, 1), name=STEM[3])(x)
        x = NormedConv(192, (3, 3), 1, "VALID", name=STEM[4])(x)
        x = _pool(x, "shrink")
        after = {}
        for name, branches in BLOCKS.items():
            x = after[name] = InceptionBlock(branches, name=name)(x)
        pool = x.mean(axis=(1, 2))
        spatial = after[_SPATIAL_BLOCK][..., :_SPATIAL_CHANNELS]
        classifier = nn.Dense(CLASSES, use_bias=False, precision=_PRECISION, name="fc")
        return InceptionFeatures(pool, spatial.reshape(len(x), -1), classifier(pool))


class InceptionBlock(nn.Module):
    """Branches side by side.

    Attributes:
      branches: whose outputs are joined in this order.
    """

    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h', w', C'], where h' is h or (h - 1) // 2."""
        return jnp.concatenate([y for b in self.branches for y in self._follow(b, x)], axis=-1)

    def _follow(self, branch: Branch, x: jax.Array) -> list[jax.Array]:
        if branch.pool:
            x = _pool(x, branch.pool)
        names = branch.names()
        for name, conv in zip(names, branch.convs):
            padding = "SAME" if conv.stride == 1 else "VALID"
            x = NormedConv(conv.width, conv[1:3], conv.stride, padding, name=name)(x)
        if not branch.fork:
            return [x]
        forked = zip(names[-2:], ((1, 3), (3, 1)))
        return [NormedConv(branch.fork, kernel, name=name)(x) for name, kernel in forked]


class NormedConv(nn.Module):
    """A convolution without bias, a batch norm with stored statistics, and a ReLU.

    Attributes:
      features: output channels.
      kernel: its rows and columns.
      stride: step of the kernel.
      padding: of the image.
    """

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h', w', features]."""
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        names = {"scale": ones, "bias": zeros, "mean": zeros, "variance": ones}
        scale, bias, mean, variance = (
            self.param(name, init, (self.features,)) for name, init in names.items()
        )
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_PRECISION,
        )
        return nn.relu((x - mean) * (scale * jax.lax.rsqrt(variance + _EPS)) + bias)


def _pool(x: jax.Array, kind: Pool) -> jax.Array:
    if kind == "average":
        return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
    if kind == "maximum":
        return nn.max_pool(x, (3, 3), padding="SAME")
    return nn.max_pool(x, (3, 3), (2, 2))
