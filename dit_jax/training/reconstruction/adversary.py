"""A discriminator, and when and how a decoder meets it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.training.optimizer import AdamW, Optimizer
from dit_jax.training.reconstruction.augmentation import diff_augment, random_numbers
from dit_jax.training.reconstruction.discriminator import SPECTRAL, DiscriminatorHeads
from dit_jax.weights import load_module


@dataclasses.dataclass(frozen=True)
class Adversary:
    """Heads on a frozen network that learn to tell decoded images from real ones.

    Attributes:
      network: the frozen network, such as `Dino`: normalised images to features of several layers,
        [B, L, C] or [B, h, w, C].
      weights: folder of its converted weights.
      heads: what is trained.
      size: side to which images are resized for it; None leaves them.
      starts: step from which the heads learn.
      counts: step from which the decoder is to deceive them.
      weight: weight of that, times the adaptive weight.
      optimizer: how the heads' parameters move; its steps are counted from `starts`.
    """

    network: nn.Module
    weights: str
    heads: DiscriminatorHeads = dataclasses.field(default_factory=DiscriminatorHeads)
    size: int | None = 224
    starts: int = 0
    counts: int = 0
    weight: float = 0.75
    optimizer: Optimizer = dataclasses.field(default_factory=AdamW)

    def load(self) -> Any:
        """Reads the frozen network's parameters.

        Raises:
          InputError: they are not where they should be.
        """
        return load_module(self.weights, self.network, (32, 32, 3))

    def init(self, key: jax.Array, shape: tuple[int, int, int]) -> tuple[Any, dict[str, Any]]:
        """Fresh parameters of the heads, and the state of their spectral norms, by its name."""

        def features(key: jax.Array) -> list[jax.Array]:
            images = jnp.zeros((1, *shape))
            return self._seen(self.network.init(key, images[:, :32, :32])["params"], images)

        found = [jnp.zeros(x.shape) for x in jax.eval_shape(features, key)]
        variables = self.heads.init(key, found)
        return variables["params"], {SPECTRAL: variables[SPECTRAL]}

    def features(self, frozen: Any, key: jax.Array, images: jax.Array) -> list[jax.Array]:
        """What the frozen network sees in images [B, H, W, 3] in [-1, 1], augmented at random.

        Returns:
          Features [B, L, C] of several layers.
        """
        return self._seen(frozen, diff_augment(images, random_numbers(key, len(images))))

    def logits(
        self, params: Any, spectral: Any, features: list[jax.Array], *, iterate: bool
    ) -> tuple[jax.Array, Any]:
        """What the heads say of features.

        Args:
          params: the heads' parameters.
          spectral: the state of their spectral norms.
          features: what `features` gave.
          iterate: improve `spectral` first, as steps of the discriminator do.

        Returns:
          Logits [B, M], and `spectral`.
        """
        variables = {"params": params, SPECTRAL: spectral}
        if not iterate:
            return self.heads.apply(variables, features), spectral
        logits, changed = self.heads.apply(variables, features, mutable=[SPECTRAL])
        return logits, changed[SPECTRAL]

    def _seen(self, frozen: Any, images: jax.Array) -> list[jax.Array]:
        if self.size is not None:
            shape = (len(images), self.size, self.size, images.shape[-1])
            images = jax.image.resize(images, shape, "bilinear", antialias=False)
        images = ((images + 1) / 2 - jnp.array(self.network.mean)) / jnp.array(self.network.std)
        features = self.network.apply({"params": frozen}, images)
        return [x.reshape(len(x), -1, x.shape[-1]) for x in features]
