"""ArrayRecord files: images or cached latents, many to a file, read at random at full speed."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from dit_jax.data.source import Record, Source, Split, mirror_pixels
from dit_jax.data.transforms import decode_rgb
from dit_jax.errors import InputError, TrainingError

# Beside the files of a split: the same records of the mirrored images, in files of the same names.
MIRRORED = "mirrored"
_SUFFIXES = (".array_record", ".arrayrecord")


@dataclasses.dataclass(frozen=True)
class ArrayRecords(Source):
    """Arrays as they are, such as cached latents, or encoded images as RGB uint8.

    If the folder has a subfolder `train`, that and `test` are the splits; otherwise the same files
    serve as both, and so do those in `train` where there is no `test`.

    Mirrored, pixels change places and latents are others: these are read from the subfolder
    `mirrored` of the split.

    Attributes:
      path: one ArrayRecord file, or a folder of them, read in the order of their names.
      classes: number of labels; 0 for a set without labels.
      record: height, width and channels of the records, which lets a run be planned before there
        are any; by default those of the first one are taken.
    """

    path: str
    classes: int = 1000
    record: tuple[int, int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels as stated, or else of the first training record.

        Raises:
          InputError: nothing is stated and there is no such record.
        """
        return self.open("train").shape if self.record is None else self.record

    @property
    def num_classes(self) -> int:
        return self.classes

    def open(self, split: Split = "train") -> "ArrayRecordFiles":
        """Opens one split and reads its first record.

        Raises:
          InputError: there are no files or not all of them, one is not an ArrayRecord file, the
            records have not the shape that is stated, or `flip` needs mirrored latents that are
            not there.
        """
        files = _files(self.path, split)
        name = str(files[0] if len(files) == 1 else files[0].parent)
        encoded = _open_files(files)
        mirrored = _open_mirrored(files, len(encoded))
        found = _read(encoded, 0, name)["image"].shape
        if self.record not in (None, found):
            raise InputError(
                f"records of {name} have shape {found}, not {self.record}: change `record`"
            )
        records = ArrayRecordFiles(encoded, name, found, self.classes, mirrored)
        if self.flip and split == "train":
            records.mirrored(0)
        return records


@dataclasses.dataclass(frozen=True)
class ArrayRecordFiles:
    """The records of ArrayRecord files, all of one shape."""

    encoded: Sequence[bytes]
    name: str
    shape: tuple[int, int, int]
    classes: int
    encoded_mirrored: Sequence[bytes] | None = None

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Record:
        return self._checked(_read(self.encoded, index, self.name), index)

    def mirrored(self, index: int) -> Record:
        """The record of the mirrored image.

        Raises:
          InputError: the records are latents, and there are none of the mirrored images.
        """
        if self.encoded_mirrored is not None:
            name = f"the mirrored {self.name}"
            return self._checked(_read(self.encoded_mirrored, index, name), index)
        record = self[index]
        if record["image"].dtype != np.uint8:
            raise InputError(
                f"the latents in {self.name} are not those of mirrored images too, as `flip` needs "
                f"them: set --data.no-flip, or cache them anew with --data.flip"
            )
        return mirror_pixels(record)

    def _checked(self, record: Record, index: int) -> Record:
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
    folder = pathlib.Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    if _shards(folder):
        raise InputError(f"{folder} already holds ArrayRecord files: write to another folder")
    shape = None
    with contextlib.ExitStack() as stack:
        files = [folder / shard_name(i, shards) for i in range(shards)]
        writers = [stack.enter_context(open_shard(file)) for file in files]
        for index, record in enumerate(records):
            image, label = record["image"], int(record["label"])
            shape = shape or np.shape(image)
            if np.shape(image) != shape:
                raise InputError(
                    f"record {index} has shape {np.shape(image)}, the first has {shape}:"
                    " all must be alike"
                )
            writers[index % shards](Record(image=image, label=label))


def shard_name(index: int, shards: int) -> str:
    """Name of one of several files, whose records follow each other in the order of the names."""
    return f"part-{index:05d}-of-{shards:05d}{_SUFFIXES[0]}"


@contextlib.contextmanager
def open_shard(file: pathlib.Path) -> Iterator[Callable[[Record], None]]:
    """Gives a function that writes a record to a file, which gets its name at the end.

    A write that is interrupted leaves no file of that name, and one that was there as it was.

    Raises:
      TrainingError: the file cannot be written, on a full disk say (at the end).
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from flax import serialization

    partial = file.with_name(f"{file.name}.partial")
    # One record a group: records are read one by one, in any order. Compressed, latents are smaller
    # by 8 %, and it takes three times as long to read and to write them.
    writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    try:
        yield lambda record: writer.write(serialization.msgpack_serialize(dict(record)))
    finally:
        _close(writer, partial)
    partial.rename(file)


def _close(writer, file: pathlib.Path) -> None:
    """Closes a writer, which tells only now of what went wrong before."""
    try:
        writer.close()
    except RuntimeError as error:
        reason = str(error).partition(";")[0]
        raise TrainingError(
            f"cannot write {file} ({reason}): make room; files that have got their names are whole"
        ) from error


def count_records(file: pathlib.Path) -> int:
    """Number of records of a file.

    Raises:
      InputError: it is not a whole ArrayRecord file.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(file))
        count = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError, OSError) as error:
        # The reader's own errors leave out the name.
        reason = str(error).partition("\n")[0] or "no readable header"
        raise InputError(
            f"{file} is not a whole ArrayRecord file ({reason}): copy or write it again"
        ) from error
    return count


def _files(path: str, split: Split) -> list[pathlib.Path]:
    root = pathlib.Path(path).expanduser()
    if root.is_file():
        return [root]
    if (root / "train").is_dir():
        root = root / split if (root / split).is_dir() else root / "train"
    files = _shards(root)
    if not files:
        raise InputError(f"no ArrayRecord files ({' or '.join(_SUFFIXES)}) in {root}")
    missing = sorted(_promised(files) - {file.name for file in files})
    if missing:
        raise InputError(
            f"{root} lacks {len(missing)} files, of which {missing[0]} is the first: finish what "
            f"writes them (python -m dit_jax cache-latents goes on), or copy them all"
        )
    return files


def _promised(files: Sequence[pathlib.Path]) -> set[str]:
    """Names that must be there, as those that are there say how many they are."""
    numbered = (re.fullmatch(r"part-\d{5}-of-(\d{5})\.array_record", file.name) for file in files)
    counts = {int(match[1]) for match in numbered if match}
    return {shard_name(i, count) for count in counts for i in range(count)}


def _shards(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)


def _open_files(files: Sequence[pathlib.Path]) -> Sequence[bytes]:
    """Opens files as one sequence."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    if not sum(count_records(file) for file in files):
        raise InputError(f"the ArrayRecord files in {files[0].parent} hold no records")
    return ArrayRecordDataSource([str(file) for file in files])


def _open_mirrored(files: Sequence[pathlib.Path], count: int) -> Sequence[bytes] | None:
    """Opens the records of the mirrored images, if there are such beside these files."""
    folder = files[0].parent / MIRRORED
    if not folder.is_dir():
        return None
    found = {file.name for file in _shards(folder)}
    missing = [file.name for file in files if file.name not in found]
    if missing:
        raise InputError(f"{folder} lacks {missing[0]}: copy it too, or write it again")
    mirrored = _open_files([folder / file.name for file in files])
    if len(mirrored) != count:
        raise InputError(
            f"{folder} has {len(mirrored)} records for {count} images: copy or write it again"
        )
    return mirrored


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
