"""What every data source offers: labelled arrays, by number."""

import abc
import dataclasses
from typing import Literal, Protocol, TypedDict

import numpy as np

Split = Literal["train", "test"]


class Record(TypedDict):
    """One example: `image` [H, W, C] (uint8 pixels, or float32 latents) and its `label`."""

    image: np.ndarray
    label: int


class Records(Protocol):
    """An opened source: a picklable sequence of records, safe to read from many threads.

    Where `image` is not pixels that change places when an image is mirrored, there is also a method
    `mirrored(index)`: the record of the mirrored image.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """A labelled set of images; its fields are its configuration.

    Attributes:
      flip: mirror each image left to right with probability one half while training.
    """

    flip: bool = dataclasses.field(default=False, kw_only=True)

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every record's `image`."""

    @property
    @abc.abstractmethod
    def num_classes(self) -> int:
        """Number of labels; 0 for a set without labels (all records then carry label 0)."""

    @abc.abstractmethod
    def open(self, split: Split = "train") -> Records:
        """Opens one split.

        Raises:
          InputError: the data is missing, empty or not what the fields promise.
        """


def read_mirrored(records: Records, index: int) -> Record:
    """The record of an image mirrored left to right."""
    if hasattr(records, "mirrored"):
        return records.mirrored(index)
    return mirror_pixels(records[index])


def mirror_pixels(record: Record) -> Record:
    """Mirrors the pixels of a record left to right."""
    return Record(image=record["image"][:, ::-1], label=record["label"])
