"""scikit-learn's handwritten digits: real data that trains in minutes on a laptop."""

import dataclasses

import numpy as np

from dit_jax.data.in_memory import InMemoryRecords
from dit_jax.data.source import Source, Split
from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Digits(Source):
    """The 1,797 handwritten digits of scikit-learn: [8, 8, 1] uint8, 10 classes.

    The set has no official division; every sixth record (0, 6, 12, ...) is a test record, which
    leaves 1,497 to train on and 300 to test on. The sixteen grey levels become 0..255.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        return (8, 8, 1)

    @property
    def num_classes(self) -> int:
        return 10

    def open(self, split: Split = "train") -> InMemoryRecords:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise InputError(
                "the digits come with scikit-learn, which is missing: pip install scikit-learn"
            ) from error
        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        in_test = np.arange(len(images)) % 6 == 0
        chosen = in_test if split == "test" else ~in_test
        return InMemoryRecords(images[chosen], digits.target[chosen].astype(np.int32))
