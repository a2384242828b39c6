"""Feature spaces: frozen networks, and the ways in which images come to them."""

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.latents.rae.encoders import Dinov2, Perceptron
from dit_jax.latents.rae.resize import resize_bicubic
from dit_jax.metrics.inception import InceptionV3
from dit_jax.metrics.resize import resize_clean, resize_pillow, resize_tf1
from dit_jax.paths import full_path
from dit_jax.weights import load_module

# Sides of the images that Inception-v3 and DINOv2 are shown.
_INCEPTION_SIDE, _DINOV2_SIDE = 299, 224


@dataclasses.dataclass(frozen=True)
class FeatureSpace(abc.ABC):
    """What maps images to vectors to compare; its fields are its configuration.

    Attributes:
      weights: folder of the network's converted weights.
      measures: names of what can be measured in it.
    """

    weights: str
    measures: ClassVar[tuple[str, ...]]

    @property
    def is_evaluators(self) -> bool:
        """Whether statistics that come with ADM's references are of these features."""
        return False

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """Network, layers and resizing in a line, for the report of a measurement."""

    @abc.abstractmethod
    def load(self) -> Any:
        """Reads the network's parameters.

        Raises:
          InputError: they are not there, and which file is to be converted; or they are of another
            network.
        """

    @abc.abstractmethod
    def __call__(self, params: Any, images: jax.Array) -> dict[str, jax.Array]:
        """Maps uint8 images [B, H, W, 3] to float32 features [B, D] by name.

        Every space has `pool`, in which Frechet distances are measured.
        """


@dataclasses.dataclass(frozen=True)
class Inception(FeatureSpace):
    """Inception-v3 of 2015-12-05: that of FID (arXiv 1706.08500), sFID and the Inception Score.

    Its features are `pool` [B, 2048], `spatial` [B, 2023] and `logits` [B, 1008].

    Attributes:
      resize: `tf1` as TensorFlow's, ADM's and torch-fidelity's evaluators do, which the graph
        itself does; `clean` as clean-fid does (arXiv 2104.11222). Numbers by the one and the other
        are not comparable.
    """

    weights: str = "weights/inception"
    resize: Literal["tf1", "clean"] = "tf1"
    measures = ("fid", "sfid", "is", "pr", "kid")

    @property
    def is_evaluators(self):
        return self.resize == "tf1"

    @property
    def description(self):
        way = {"tf1": "bilinear as in TensorFlow 1", "clean": "bicubic as in clean-fid"}
        return f"Inception-v3 of 2015-12-05, resized to 299x299, {way[self.resize]}"

    def load(self):
        file = "pt_inception-2015-12-05-6726825d.pth"
        address = "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
        return _load(self.weights, InceptionV3(), _INCEPTION_SIDE, file, address)

    def __call__(self, params, images):
        resize = resize_tf1 if self.resize == "tf1" else resize_clean
        pixels = resize(images, (_INCEPTION_SIDE, _INCEPTION_SIDE))
        found = InceptionV3().apply({"params": params}, (pixels - 128) / 128)
        return found._asdict()


class ClassToken(Dinov2):
    """DINOv2 whose result is its CLS token alone."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images [B, H, W, 3] to [B, hidden], after the last norm, float32."""
        return self.all_tokens(images)[:, 0]


def _large() -> ClassToken:
    return ClassToken(hidden=1024, depth=24, heads=16, ffn=Perceptron(4096))


@dataclasses.dataclass(frozen=True)
class DINOv2(FeatureSpace):
    """DINOv2's CLS token, `pool`, in which FD-DINOv2 is measured (Stein et al., arXiv 2306.04675).

    As in the authors' code: Pillow's bicubic to 224 pixels, in bytes; position embeddings resized
    as DINOv2's own code does, which is not quite as transformers does.

    Attributes:
      network: DINOv2, ViT-L/14 without registers by default.
    """

    weights: str = "weights/dinov2-large"
    network: ClassToken = dataclasses.field(default_factory=_large)
    measures = ("fd", "pr", "kid")

    @property
    def description(self):
        width, depth = self.network.hidden, self.network.depth
        return (
            f"CLS token of DINOv2 of width {width} and depth {depth}, resized to 224x224, bicubic "
            f"as in Pillow"
        )

    def load(self):
        network, address = self.network, "https://huggingface.co/facebook/dinov2-large"
        params = _load(self.weights, network, network.image_size, "dinov2-large", address)
        side, grid = network.image_size // network.patch, _DINOV2_SIDE // network.patch
        cls, table = params["position"][:1], params["position"][1:].reshape(side, side, -1)
        if side != grid:
            table = resize_bicubic(table, (grid, grid), offset=0.1)
        return params | {"position": jnp.concatenate([cls, table.reshape(grid**2, -1)])}

    def __call__(self, params, images):
        pixels = resize_pillow(images, (_DINOV2_SIDE, _DINOV2_SIDE)) / 255
        normalised = (pixels - jnp.array(self.network.mean)) / jnp.array(self.network.std)
        network = self.network.clone(image_size=_DINOV2_SIDE)
        # Otherwise a TPU or GPU would multiply in less than float32.
        with jax.default_matmul_precision("highest"):
            return {"pool": network.apply({"params": params}, normalised)}


def _load(folder: str, module: nn.Module, side: int, file: str, address: str) -> Any:
    """Reads parameters; where there are none, says what would put them there."""
    if not (full_path(folder) / "checkpoints").is_dir():
        raise InputError(
            f"'{folder}' holds no weights: get {file} from {address} and run `python -m dit_jax "
            f"convert from-torch {file} {folder}`"
        )
    return load_module(folder, module, (side, side, 3))


FeaturesName = Literal["inception", "inception-clean", "dinov2"]

FEATURES: dict[FeaturesName, FeatureSpace] = {
    "inception": Inception(),
    "inception-clean": Inception(resize="clean"),
    "dinov2": DINOv2(),
}


def find_features(name: FeaturesName, weights: str | None = None) -> FeatureSpace:
    """Returns a feature space by its name, with its weights elsewhere if they are."""
    space = FEATURES[name]
    return space if weights is None else dataclasses.replace(space, weights=weights)
