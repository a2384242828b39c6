"""ArrayRecord files: images or cached latents, many to a file, read at random at full speed."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from dit_jax.data.source import Record, Source, Split
from dit_jax.data.transforms import decode_rgb
from dit_jax.errors import InputError

_SUFFIXES = (".array_record", ".arrayrecord")


@dataclasses.dataclass(frozen=True)
class ArrayRecords(Source):
    """Records written by `write_array_records`: arrays as they are, encoded images as RGB uint8.

    If the folder has subfolders `train` and `test`, these are the splits; otherwise the same files
    serve as both.

    Attributes:
      path: one ArrayRecord file, or a folder of them, read in the order of their names.
      classes: number of labels; 0 for a set without labels.
    """

    path: str
    classes: int = 1000

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the first training record.

        Raises:
          InputError: there is no such record.
        """
        return self.open("train").shape

    @property
    def num_classes(self) -> int:
        return self.classes

    def open(self, split: Split = "train") -> "ArrayRecordFiles":
        """Opens one split and reads its first record.

        Raises:
          InputError: there are no files, or one is not an ArrayRecord file.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        files = _files(self.path, split)
        for file in files:
            _check(file)
        encoded = ArrayRecordDataSource([str(file) for file in files])
        if not len(encoded):
            raise InputError(f"the ArrayRecord files in {self.path} hold no records")
        name = str(files[0] if len(files) == 1 else files[0].parent)
        first = _read(encoded, 0, name)
        return ArrayRecordFiles(encoded, name, first["image"].shape, self.classes)


@dataclasses.dataclass(frozen=True)
class ArrayRecordFiles:
    """The records of ArrayRecord files, all of one shape."""

    encoded: Sequence[bytes]
    name: str
    shape: tuple[int, int, int]
    classes: int

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Record:
        record = _read(self.encoded, index, self.name)
        if record["image"].shape != self.shape:
            raise InputError(
                f"record {index} of {self.name} has shape {record['image'].shape}, the first has"
                f" {self.shape}: write them in one shape"
            )
        if not 0 <= record["label"] < max(self.classes, 1):
            raise InputError(
                f"record {index} of {self.name} has label {record['label']}, outside the"
                f" {self.classes} classes of `classes`"
            )
        return record


def write_array_records(path: str, records: Iterable[Record], shards: int = 1) -> None:
    """Writes records into the folder `path`, which ArrayRecords then reads.

    Record i goes to file i % shards, so that a stream of unknown length can be written; with one
    shard the order is kept. The files get their names at the end: a write that was interrupted
    leaves none.

    Args:
      path: the folder, created if missing.
      records: `image` an array [H, W, C] or the bytes of an encoded image, and its `label`.
      shards: number of files.

    Raises:
      InputError: the folder already holds ArrayRecord files, or shapes differ.
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from flax import serialization

    folder = pathlib.Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    if _shards(folder):
        raise InputError(f"{folder} already holds ArrayRecord files: write to another folder")
    names = [f"part-{i:05d}-of-{shards:05d}.array_record" for i in range(shards)]
    partial = [folder / f"{name}.partial" for name in names]
    shape = None
    with contextlib.ExitStack() as stack:
        # One record a group: records are read one by one, in any order.
        writers = [ArrayRecordWriter(str(file), "group_size:1") for file in partial]
        for writer in writers:
            stack.callback(writer.close)
        for index, record in enumerate(records):
            image, label = record["image"], int(record["label"])
            shape = shape or np.shape(image)
            if np.shape(image) != shape:
                raise InputError(
                    f"record {index} has shape {np.shape(image)}, the first has {shape}:"
                    " all must be alike"
                )
            content = serialization.msgpack_serialize({"image": image, "label": label})
            writers[index % shards].write(content)
    for file, name in zip(partial, names):
        file.rename(folder / name)


def _files(path: str, split: Split) -> list[pathlib.Path]:
    root = pathlib.Path(path).expanduser()
    if root.is_file():
        return [root]
    if (root / "train").is_dir() and (root / "test").is_dir():
        root = root / split
    files = _shards(root)
    if not files:
        raise InputError(f"no ArrayRecord files ({' or '.join(_SUFFIXES)}) in {root}")
    return files


def _shards(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)


def _check(file: pathlib.Path) -> None:
    """Opens and closes one file, whose name the reader's own errors leave out."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        ArrayRecordReader(str(file)).close()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0] or "no readable header"
        raise InputError(
            f"{file} is not a whole ArrayRecord file ({reason}): copy or write it again"
        ) from error


def _read(encoded: Sequence[bytes], index: int, name: str) -> Record:
    """Decodes one record."""
    from flax import serialization

    try:
        record = serialization.msgpack_restore(encoded[index])
        image, label = record["image"], record["label"]
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"cannot read record {index} of {name} ({error}): write it again"
        ) from error
    if isinstance(image, bytes):
        image = np.array(decode_rgb(image, f"{index} of {name}"))
    return Record(image=image, label=label)
