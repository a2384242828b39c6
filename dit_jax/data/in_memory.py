"""Records whose arrays fit in memory."""

import dataclasses

import numpy as np

from dit_jax.data.source import Record


@dataclasses.dataclass(frozen=True)
class InMemoryRecords:
    """An opened source held as two arrays.

    Attributes:
      images: [N, H, W, C], any dtype.
      labels: [N] integers.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(image=self.images[index], label=int(self.labels[index]))
