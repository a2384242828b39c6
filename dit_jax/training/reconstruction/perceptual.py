"""Distances between images in the features of a frozen network."""

import abc
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.weights import load_module

# The statistics of LPIPS, of images in [-1, 1]; not quite ImageNet's.
_MEAN = (-0.030, -0.088, -0.188)
_STD = (0.458, 0.448, 0.450)

# Convolutions of VGG-16 between one pooling and the next.
VGG16_GROUPS = (2, 2, 3, 3, 3)


@dataclasses.dataclass(frozen=True)
class Perceptual(abc.ABC):
    """A distance that a decoder is to make small.

    Attributes:
      weights: folder of the network's converted weights.
    """

    weights: str

    @abc.abstractmethod
    def load(self) -> Any:
        """Reads the network's parameters.

        Raises:
          InputError: they are not where they should be.
        """

    @abc.abstractmethod
    def __call__(self, params: Any, a: jax.Array, b: jax.Array) -> jax.Array:
        """Distance [B] of images [B, H, W, 3] in [-1, 1], float32."""


class VGG16(nn.Module):
    """VGG-16 up to its last convolution (arXiv 1409.1556), and LPIPS' weight of each channel.

    Attributes:
      widths: channels of the five groups of convolutions.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)

    @nn.compact
    def __call__(self, images: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """Maps images [B, H, W, 3] in [-1, 1] to features [B, h, w, C] of five groups, weighted."""
        x = (images - jnp.array(_MEAN)) / jnp.array(_STD)
        found = []
        for i, (width, count) in enumerate(zip(self.widths, VGG16_GROUPS)):
            if i:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for j in range(count):
                x = nn.relu(nn.Conv(width, (3, 3), name=f"conv_{i}_{j}")(x))
            found.append((x, self.param(f"weight_{i}", nn.initializers.ones, (width,))))
        return found


@dataclasses.dataclass(frozen=True)
class LPIPS(Perceptual):
    """LPIPS of VGG-16 (Zhang et al., arXiv 1801.03924).

    Attributes:
      network: its features.
    """

    network: VGG16 = dataclasses.field(default_factory=VGG16)

    def load(self):
        return load_module(self.weights, self.network, (32, 32, 3))

    def __call__(self, params, a, b):
        # Apart, so that where one of them is real it costs no backward pass.
        pairs = zip(*(self.network.apply({"params": params}, images) for images in (a, b)))
        return sum(feature_distance(x, y, weight) for (x, weight), (y, _) in pairs)


@dataclasses.dataclass(frozen=True)
class FeatureDistance(Perceptual):
    """A stand-in for LPIPS in any network's features, all channels equal; it is not LPIPS.

    Attributes:
      network: normalised images to features [B, h, w, C] of several layers, such as
        `EfficientNetFeatures`; it has `mean` and `std` of images in [0, 1].
    """

    network: nn.Module

    def load(self):
        return load_module(self.weights, self.network, (32, 32, 3))

    def __call__(self, params, a, b):
        mean, std = jnp.array(self.network.mean), jnp.array(self.network.std)
        both = (((images + 1) / 2 - mean) / std for images in (a, b))
        pairs = list(zip(*(self.network.apply({"params": params}, images) for images in both)))
        return sum(feature_distance(x, y, jnp.ones(x.shape[-1])) for x, y in pairs) / len(pairs)


def feature_distance(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    """LPIPS in one layer (arXiv 1801.03924, eq. 1).

    Args:
      a: features of images, [B, h, w, C].
      b: features of what they are compared with.
      weight: [C], of the channels.

    Returns:
      Weighted squared differences of unit vectors, averaged over positions, [B].
    """
    return (jnp.square(_unit(a) - _unit(b)) * weight).sum(axis=-1).mean(axis=(1, 2))


def _unit(features: jax.Array) -> jax.Array:
    squares = jnp.square(features).sum(axis=-1, keepdims=True)
    # The root's gradient is infinite where no feature is active.
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    return features / (norm + 1e-10)
