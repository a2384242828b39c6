"""Crops of scikit-image's photographs: real pictures that need no download."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dit_jax.data.source import Record, Source, Split
from dit_jax.errors import InputError

# Functions of `skimage.data` whose pictures come in its wheel; the grey ones are made RGB.
_NAMES = (
    *("astronaut", "cat", "coffee", "stereo_motorcycle"),
    *("rocket", "hubble_deep_field", "camera", "coins"),
)
# One place in so many is for testing, and one record to so many training records.
_TEST = 10


@dataclasses.dataclass(frozen=True)
class Photos(Source):
    """Eight photographs, each a class, cut at random places: [size, size, 3] uint8.

    Test crops are of the same photographs at other places, every tenth, so they say nothing of
    other pictures.

    Attributes:
      size: height and width delivered.
      side: short side that a photograph is shrunk to before it is cut; more than `size`.
      crops: training records of each photograph; a tenth as many are test records.
    """

    size: int = 64
    side: int = 96
    crops: int = 500

    def __post_init__(self):
        if not 1 <= self.size < self.side:
            raise InputError(f"Photos cannot cut {self.size} pixels out of {self.side}: set `side`")
        if self.crops < _TEST:
            raise InputError(f"Photos.crops is {self.crops}: it must be at least {_TEST}")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, 3)

    @property
    def num_classes(self) -> int:
        return len(_NAMES)

    def open(self, split: Split = "train") -> "PhotoCrops":
        try:
            from skimage import data
        except ImportError as error:
            raise InputError(
                "the photographs come with scikit-image, which is missing: pip install scikit-image"
            ) from error
        pictures = (getattr(data, name)() for name in _NAMES)
        shrunk = tuple(_shrunk(p[0] if isinstance(p, tuple) else p, self.side) for p in pictures)
        in_test = split == "test"
        crops = self.crops // _TEST if in_test else self.crops
        return PhotoCrops(shrunk, self.size, crops, in_test)


@dataclasses.dataclass(frozen=True)
class PhotoCrops:
    """The records: photographs take turns; where one is cut is a function of split and number."""

    photos: Sequence[np.ndarray]
    size: int
    crops: int
    in_test: bool

    def __len__(self) -> int:
        return self.crops * len(self.photos)

    def __getitem__(self, index: int) -> Record:
        label = index % len(self.photos)
        photo = self.photos[label]
        rows, columns = (side - self.size + 1 for side in photo.shape[:2])
        top, left = divmod(self._place(rows * columns, index), columns)
        # A copy, so that nothing is written into the photograph.
        crop = photo[top : top + self.size, left : left + self.size].copy()
        return Record(image=crop, label=label)

    def _place(self, places: int, index: int) -> int:
        """One of the places that this split has; 0, 10, 20, ... are for testing."""
        for_test = -(-places // _TEST)
        draw = np.random.default_rng([self.in_test, index]).integers
        if self.in_test:
            return _TEST * int(draw(for_test))
        number = int(draw(places - for_test))
        return number + number // (_TEST - 1) + 1


def _shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture of any kind as RGB whose short side is `side`."""
    image = Image.fromarray(picture).convert("RGB")
    scale = side / min(image.size)
    size = tuple(round(length * scale) for length in image.size)
    return np.array(image.resize(size, Image.Resampling.BICUBIC))
