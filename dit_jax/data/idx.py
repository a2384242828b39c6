"""IDX files: the format of MNIST and of every set made to replace it."""

import dataclasses
import gzip
import math
import pathlib
import zlib

import numpy as np

from dit_jax.data.in_memory import InMemoryRecords
from dit_jax.data.source import Source, Split
from dit_jax.errors import InputError

_PREFIX = {"train": "train", "test": "t10k"}


@dataclasses.dataclass(frozen=True)
class Idx(Source):
    """Grey images in IDX files with MNIST's four names, plain or gzipped: [size, size, 1] uint8.

    Attributes:
      path: the folder of train-images-idx3-ubyte, train-labels-idx1-ubyte and their t10k pair.
      size: height and width delivered; smaller images are framed with zeros, evenly on all sides.
      classes: number of labels.
    """

    path: str
    size: int = 28
    classes: int = 10

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, 1)

    @property
    def num_classes(self) -> int:
        return self.classes

    def open(self, split: Split = "train") -> InMemoryRecords:
        """Reads one split into memory.

        Raises:
          InputError: a file is missing, truncated, not IDX, does not match its partner or holds
            a label outside the classes.
        """
        image_file = _find(self.path, f"{_PREFIX[split]}-images-idx3-ubyte")
        label_file = _find(self.path, f"{_PREFIX[split]}-labels-idx1-ubyte")
        images = _read(image_file, dimensions=3)
        labels = _read(label_file, dimensions=1)
        if not len(images):
            raise InputError(f"{image_file} holds no images")
        if len(images) != len(labels):
            raise InputError(
                f"{image_file} holds {len(images)} images but {label_file.name} holds"
                f" {len(labels)} labels: they must come from the same set"
            )
        if labels.max() >= self.classes:
            index = int(np.argmax(labels >= self.classes))
            raise InputError(
                f"{label_file}: record {index} has label {labels[index]}, outside the"
                f" {self.classes} classes of `classes`"
            )
        return InMemoryRecords(_frame(images, self.size, image_file)[..., None], labels)


def _find(folder: str, name: str) -> pathlib.Path:
    """The file `name` or `name`.gz in `folder`."""
    plain = pathlib.Path(folder).expanduser() / name
    for candidate in (plain, plain.with_name(name + ".gz")):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"no {plain} (or .gz): Fashion-MNIST comes with `apt-get install dataset-fashion-mnist`"
        " or from github.com/zalandoresearch/fashion-mnist"
    )


def _read(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """Reads a uint8 IDX file: 0, 0, 8 (uint8), the rank, big-endian int32 sizes, the data."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({error}): fetch it again") from error
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise InputError(
            f"{path} is not an IDX file of rank {dimensions}: it starts with"
            f" {content[:4].hex()}, not {magic.hex()}"
        )
    header = 4 + 4 * dimensions
    sizes = np.frombuffer(content[4:header], ">i4") if len(content) >= header else ()
    expected = header + math.prod(map(int, sizes))
    if len(content) < header or len(content) != expected:
        raise InputError(
            f"{path} is truncated or padded: {len(content)} bytes where its header promises"
            f" {max(expected, header)}; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


def _frame(images: np.ndarray, size: int, path: pathlib.Path) -> np.ndarray:
    """Frames [N, h, w] with zeros to [N, size, size]; an odd row or column goes last."""
    missing = [size - length for length in images.shape[1:]]
    if min(missing) < 0:
        raise InputError(
            f"{path} holds images of {images.shape[1]}x{images.shape[2]} pixels, larger than"
            f" `size` {size}: raise it"
        )
    return np.pad(images, [(0, 0)] + [(m // 2, m - m // 2) for m in missing])
