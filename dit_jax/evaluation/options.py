"""What is measured."""

import dataclasses

from dit_jax.evaluation.judge import Judge


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a run is evaluated.

    Attributes:
      samples: how many images to generate; 0 evaluates nothing at the end of training.
      batch_size: images generated at once, over all devices.
      seed: seed of the samples.
      held_out: test images whose loss is measured; 0 for none.
      judge: the feature space and classifier that samples are compared in, or None.
    """

    samples: int = 0
    batch_size: int = 100
    seed: int = 0
    held_out: int = 0
    judge: Judge | None = None
