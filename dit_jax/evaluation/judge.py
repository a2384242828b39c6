"""Who judges samples: a feature space, and a reader of labels."""

import abc
import dataclasses
from typing import Protocol

import numpy as np

from dit_jax.data.source import Records


class FittedJudge(Protocol):
    """A judge that has seen the real images."""

    description: str

    def features(self, images: np.ndarray) -> np.ndarray:
        """Maps uint8 images [N, H, W, C] to features [N, D], float64."""

    def labels(self, images: np.ndarray) -> np.ndarray:
        """Reads the label of each image, [N]."""


@dataclasses.dataclass(frozen=True)
class Judge(abc.ABC):
    """A feature space to be; its fields are its configuration."""

    @abc.abstractmethod
    def fit(self, real: Records) -> FittedJudge:
        """Makes the judge ready, from real training images where it needs them."""


@dataclasses.dataclass(frozen=True)
class SmallClassifier(Judge):
    """A multilayer perceptron fitted on the real images, for sets that have no standard judge.

    Its last hidden layer is the feature space, so a distance in it is not comparable between data
    sets, nor with FID.

    Attributes:
      hidden: widths of the hidden layers.
      epochs: passes over the images.
    """

    hidden: tuple[int, ...] = (256, 64)
    epochs: int = 30

    def fit(self, real):
        from sklearn.neural_network import MLPClassifier

        images, labels = stack(real)
        network = MLPClassifier(self.hidden, max_iter=self.epochs, random_state=0, tol=0.0)
        return _FittedClassifier(_fit_quietly(network, _flatten(images), labels))


class _FittedClassifier:
    def __init__(self, network):
        self._network = network
        widths = "-".join(map(str, network.hidden_layer_sizes))
        self.description = f"last hidden layer of a {widths} perceptron fitted on the training set"

    def features(self, images: np.ndarray) -> np.ndarray:
        x = _flatten(images)
        for weight, bias in zip(self._network.coefs_[:-1], self._network.intercepts_[:-1]):
            x = np.maximum(x @ weight + bias, 0)
        return x

    def labels(self, images: np.ndarray) -> np.ndarray:
        return self._network.predict(_flatten(images))


def stack(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Reads all records into images [N, H, W, C] and labels [N]."""
    loaded = [records[i] for i in range(len(records))]
    return np.stack([r["image"] for r in loaded]), np.array([r["label"] for r in loaded])


def _flatten(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64) / 255


def _fit_quietly(network, images: np.ndarray, labels: np.ndarray):
    import warnings

    with warnings.catch_warnings():
        # The number of epochs is fixed, so "did not converge" says nothing.
        warnings.filterwarnings("ignore", module="sklearn")
        return network.fit(images, labels)
