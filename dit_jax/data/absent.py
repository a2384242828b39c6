"""Data that is elsewhere: of a model that was trained by other code."""

import dataclasses

from dit_jax.data.source import Source
from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Absent(Source):
    """Stands for the images of a converted checkpoint, which came without them.

    Attributes:
      array_shape: height, width and channels that a record would have.
      classes: number of labels.
    """

    array_shape: tuple[int, int, int]
    classes: int

    @property
    def shape(self):
        return self.array_shape

    @property
    def num_classes(self):
        return self.classes

    def open(self, split="train"):
        """Raises InputError: there is nothing to open."""
        raise InputError(
            "this model was converted from PyTorch and came without data: train with a "
            "configuration that names some, and --init-from this folder"
        )
