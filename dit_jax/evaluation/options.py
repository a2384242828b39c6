"""What is measured."""

import dataclasses
from typing import Literal

from dit_jax.errors import InputError
from dit_jax.evaluation.judge import Judge
from dit_jax.metrics.features import FeatureSpace, Inception
from dit_jax.metrics.measure import check_names


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a run is evaluated.

    Attributes:
      samples: how many images to generate; 0 evaluates nothing at the end of training.
      batch_size: images generated at once, over all devices.
      seed: seed of the samples.
      labels: classes in turn, so that all are equally frequent, or drawn at random.
      held_out: test images whose loss is measured; 0 for none.
      judge: a small feature space and classifier fitted to the data, or None.
      metrics: measures of the samples: fid, sfid, is, pr, kid, as far as it has them by the
        protocol of ADM's evaluator.
      reference: .npz file that they are compared with, in ADM's format.
      features: what those metrics see in an image.
      every: steps of training between evaluations; 0 for one at the end alone.
      every_samples: how many images those generate.
    """

    samples: int = 0
    batch_size: int = 100
    seed: int = 0
    labels: Literal["balanced", "random"] = "balanced"
    held_out: int = 0
    judge: Judge | None = None
    metrics: tuple[str, ...] = ()
    reference: str | None = None
    features: FeatureSpace = dataclasses.field(default_factory=Inception)
    every: int = 0
    every_samples: int = 1000

    def in_training(self) -> "Evaluation":
        """What is measured while a run trains.

        Raises:
          InputError: that is nothing.
        """
        if not (self.metrics or self.judge or self.held_out):
            raise InputError(
                f"every {self.every} steps of training nothing is measured: set metrics, a judge "
                f"or held-out images of the evaluation, or every to 0"
            )
        return dataclasses.replace(self, samples=self.every_samples)

    def check(self) -> None:
        """Raises InputError where the parts do not fit each other; opens no file."""
        if self.samples < 1 or self.batch_size < 1:
            raise InputError(
                f"{self.samples} samples in batches of {self.batch_size}: both must be at least 1"
            )
        if (self.judge is not None or self.metrics) and self.samples < 2:
            raise InputError("one sample has no distribution to judge: ask for at least 2")
        if self.reference is not None and not self.metrics:
            raise InputError(f"nothing is compared with '{self.reference}': name metrics, fid say")
        check_names(self.metrics, self.features, self.reference)
