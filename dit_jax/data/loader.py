"""Batches of records in an order that is a function of (seed, position), built on Grain."""

import atexit
import collections
import dataclasses
import functools
import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dit_jax.data.source import Record, Records, read_mirrored
from dit_jax.errors import InputError, TrainingError

if TYPE_CHECKING:
    import jax

Batch = dict[str, np.ndarray]


class DataWorkerError(TrainingError):
    """A reader process died: the message says how and what would help."""


@dataclasses.dataclass(frozen=True)
class Loader:
    """How records are read; what is read is the source's matter. No field changes the batches.

    Attributes:
      workers: reader processes; 0 reads in threads of this process.
      threads: reader threads in each of these processes; 0 reads when a batch is asked for.
      ahead: batches kept ready: by each reader process, and again on the device.
    """

    workers: int = 0
    threads: int = 4
    ahead: int = 2

    def __post_init__(self):
        for name in ("workers", "threads"):
            if getattr(self, name) < 0:
                raise InputError(f"Loader.{name} is {getattr(self, name)}: it must be 0 or more")
        if self.ahead < 1:
            raise InputError(f"Loader.ahead is {self.ahead}: it must be 1 or more")


def order(position: int, length: int, seed: int) -> int:
    """The record at a global position: every epoch is a permutation of its own.

    Args:
      position: row of the endless stream of records, from 0.
      length: number of records.
      seed: 0 or more.
    """
    from grain.experimental import index_shuffle

    epoch, index = divmod(position, length)
    return index_shuffle(index, max_index=length - 1, seed=_epoch_seed(seed, epoch), rounds=4)


def batches(
    records: Records,
    *,
    batch_size: int,
    start: int,
    steps: int,
    seed: int,
    num_classes: int,
    flip: bool = False,
    loader: Loader = Loader(),
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """This process's rows of the global batches of steps start, ..., steps - 1.

    Row r of step s is global position s * batch_size + r. Everything is a function of (seed,
    position), so a resumed run, more workers or more processes see the same data, bit for bit.

    Args:
      records: an opened source.
      batch_size: rows of the global batch.
      start: first step delivered.
      steps: number of steps of the whole run.
      seed: 0 or more.
      num_classes: labels must lie below it; 0 for a set without labels.
      flip: mirror each image left to right with probability one half.
      loader: how records are read.
      rows: which rows of each batch are read; all by default.

    Returns:
      An iterator of {"image": [b, H, W, C] as the records have it, "label": [b] int32}, where b is
      the number of rows. Its reader processes end when it is exhausted, closed or deleted.

    Raises:
      InputError: the sizes do not fit together (here); a record is bad (while iterating).
      DataWorkerError: a reader process died (while iterating).
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: it must be at least 1")
    if seed < 0:
        raise InputError(f"data seed {seed} is negative: use 0 or more")
    if not len(records):
        raise InputError("the data source holds no records")
    rows = range(batch_size) if rows is None else rows
    read = _ReadBatch(records, batch_size, tuple(map(int, rows)), seed, num_classes, flip)
    return _start(read, start, steps, loader)


def batches_in_order(
    records: Records,
    spans: Sequence[range],
    *,
    num_classes: int,
    loader: Loader = Loader(),
) -> Iterator[Batch]:
    """A batch of each span of records, as they are.

    Args:
      records: an opened source.
      spans: numbers of the records of each batch.
      num_classes: labels must lie below it; 0 for a set without labels.
      loader: how records are read.

    Returns:
      An iterator such as that of `batches`.

    Raises:
      InputError: a record is bad (while iterating).
      DataWorkerError: a reader process died (while iterating).
    """
    read = _ReadSpan(records, tuple(spans), num_classes)
    return _start(read, 0, len(spans), loader)


def to_device(
    batches: Iterable[Batch],
    sharding: "jax.sharding.Sharding",
    rows: np.ndarray,
    batch_size: int,
    ahead: int = 2,
) -> Iterator[dict]:
    """Places each process's rows as global arrays, `ahead` batches before they are asked for.

    Args:
      batches: batches of this process's rows.
      sharding: of the leading axis over the devices of all processes.
      rows: which rows of the global batch these are, ascending; all that its devices hold.
      batch_size: rows of the global batch.
      ahead: batches in flight to the device besides the one in use.

    Yields:
      The same dictionaries as jax.Arrays, rows of all processes together.
    """
    import jax

    def place(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(batch_size)
            return local[slice(*np.searchsorted(rows, (first, last)))]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part)

    source = iter(batches)
    ready = collections.deque()
    try:
        while True:
            missing = ahead + 1 - len(ready)
            ready.extend(jax.tree.map(place, b) for b in itertools.islice(source, missing))
            if not ready:
                return
            yield ready.popleft()
    finally:
        close = getattr(source, "close", None)
        if close:
            close()


@functools.lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class _ReadBatch:
    """Reads one process's rows of a step's batch; travels to the reader processes by pickle."""

    records: Records
    batch_size: int
    rows: tuple[int, ...]
    seed: int
    num_classes: int
    flip: bool

    def __call__(self, step: int) -> Batch:
        first = step * self.batch_size
        images, labels = zip(*(self.read(first + row) for row in self.rows))
        return {"image": np.stack(images), "label": np.array(labels, np.int32)}

    def read(self, position: int) -> tuple[np.ndarray, int]:
        index = order(position, len(self.records), self.seed)
        mirror = self.flip and _mirrored(self.seed, position)
        record = read_mirrored(self.records, index) if mirror else self.records[index]
        return _image_and_label(record, index, self.num_classes)


@dataclasses.dataclass(frozen=True)
class _ReadSpan:
    """Reads one span of records; travels to the reader processes by pickle."""

    records: Records
    spans: tuple[range, ...]
    num_classes: int

    def __call__(self, number: int) -> Batch:
        images, labels = zip(
            *(
                _image_and_label(self.records[index], index, self.num_classes)
                for index in self.spans[number]
            )
        )
        return {"image": np.stack(images), "label": np.array(labels, np.int32)}


def _image_and_label(record: Record, index: int, num_classes: int) -> tuple[np.ndarray, int]:
    if not 0 <= record["label"] < max(num_classes, 1):
        raise InputError(
            f"record {index} has label {record['label']}, outside the {num_classes} classes of the"
            " data source"
        )
    return record["image"], record["label"]


def _mirrored(seed: int, position: int) -> bool:
    bits = np.random.Philox(key=np.array([seed, position], np.uint64)).random_raw()
    return bool(bits >> 63)


def _start(read: Callable[[int], Batch], start: int, steps: int, loader: Loader) -> Iterator[Batch]:
    """The iterator over batches start, ..., steps - 1."""
    iterator = _iterate(read, start, steps, loader)
    # A program may end with its iterator half read; the interpreter's own clean-up comes too late
    # for reader processes and their shared memory.
    atexit.register(_close_if_alive, weakref.ref(iterator))
    return iterator


def _iterate(
    read: Callable[[int], Batch], start: int, steps: int, loader: Loader
) -> Iterator[Batch]:
    """Runs `read` over the steps, ahead of time, and ends what it started."""
    import grain

    data = grain.MapDataset.range(start, steps).map(read)
    ahead = max(loader.ahead, loader.threads) if loader.threads else 0
    data = data.to_iter_dataset(grain.ReadOptions(loader.threads, ahead))
    if loader.workers:
        _mark_flags_parsed()
        data = data.mp_prefetch(
            grain.MultiprocessingOptions(loader.workers, loader.ahead), _start_worker
        )
    iterator = iter(data)
    try:
        for batch in iterator:
            # Grain hands out shared memory, whose pages vanish with the array that owns them while
            # JAX may still read: a copy is cheap beside the reading.
            yield {name: np.array(rows) for name, rows in batch.items()}
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise DataWorkerError(
            f"a data reader process died ({error}): it may have run out of memory (try a lower"
            " loader.workers), or the script that started it lacks `if __name__ == '__main__':`"
        ) from error
    finally:
        iterator.close()
        if loader.workers:
            # The exception that ended Grain's iterator holds the last batches' shared memory.
            del iterator
            gc.collect()


def _close_if_alive(reference: weakref.ref) -> None:
    iterator = reference()
    if iterator is not None:
        iterator.close()


def _mark_flags_parsed() -> None:
    """Grain's workers read absl flags, which only an absl app parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_worker(index: int, count: int) -> None:
    """Makes a reader process harmless: it dies with its parent and takes no accelerator."""
    del index, count
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # Grain has imported JAX by now, so the environment variable alone would come too late.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _die_with_parent() -> None:
    """Waits for the parent's end, even by kill -9, even if it came before this call."""
    parent = multiprocessing.parent_process()
    # The sentinel wakes at once; a process forked from the parent may hold it open, hence the pid.
    while parent.is_alive() and os.getppid() == parent.pid:
        parent.join(timeout=1)
    os._exit(1)
