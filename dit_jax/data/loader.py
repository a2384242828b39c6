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
from collections.abc import Iterable, Iterator

import numpy as np

from dit_jax.data.source import Records
from dit_jax.errors import InputError, TrainingError

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
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This process's share of the global batches of steps start, ..., steps - 1.

    Row r of step s is global position s * batch_size + r; process p of P reads rows
    [p * batch_size / P, (p + 1) * batch_size / P). Everything is a function of (seed, position),
    so a resumed run, more workers or more processes see the same data, bit for bit.

    Args:
      records: an opened source.
      batch_size: rows of the global batch.
      start: first step delivered.
      steps: number of steps of the whole run.
      seed: 0 or more.
      num_classes: labels must lie below it; 0 for a set without labels.
      flip: mirror each image left to right with probability one half.
      loader: how records are read.
      process_index: which share is read.
      process_count: number of shares.

    Returns:
      An iterator of {"image": [b, H, W, C] as the records have it, "label": [b] int32}, where b is
      batch_size / process_count. Its reader processes end when it is exhausted, closed or deleted.

    Raises:
      InputError: the sizes do not fit together (here); a record is bad (while iterating).
      DataWorkerError: a reader process died (while iterating).
    """
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch size {batch_size} does not divide among {process_count} processes: use a"
            " positive multiple"
        )
    if seed < 0:
        raise InputError(f"data seed {seed} is negative: use 0 or more")
    if not len(records):
        raise InputError("the data source holds no records")
    share = batch_size // process_count
    read = _ReadBatch(records, batch_size, process_index * share, share, seed, num_classes, flip)
    iterator = _iterate(read, start, steps, loader)
    # A program may end with its iterator half read; the interpreter's own clean-up comes too late
    # for reader processes and their shared memory.
    atexit.register(_close_if_alive, weakref.ref(iterator))
    return iterator


def to_device(batches: Iterable[Batch], sharding, ahead: int = 2) -> Iterator[dict]:
    """Places each process's share as global arrays, `ahead` batches before they are asked for.

    Args:
      batches: batches of this process's rows.
      sharding: a jax.sharding.Sharding of the leading axis over the devices of all processes.
      ahead: batches in flight to the device besides the one in use.

    Yields:
      The same dictionaries as jax.Arrays, rows of all processes together.
    """
    import jax

    place = functools.partial(jax.make_array_from_process_local_data, sharding)
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
    first_row: int
    rows: int
    seed: int
    num_classes: int
    flip: bool

    def __call__(self, step: int) -> Batch:
        first = step * self.batch_size + self.first_row
        rows = [self.read(position) for position in range(first, first + self.rows)]
        images, labels = zip(*rows)
        return {"image": np.stack(images), "label": np.array(labels, np.int32)}

    def read(self, position: int) -> tuple[np.ndarray, int]:
        index = order(position, len(self.records), self.seed)
        record = self.records[index]
        image, label = record["image"], record["label"]
        if not 0 <= label < max(self.num_classes, 1):
            raise InputError(
                f"record {index} has label {label}, outside the {self.num_classes} classes of the"
                " data source"
            )
        if self.flip and _mirrored(self.seed, position):
            image = image[:, ::-1]
        return image, label


def _mirrored(seed: int, position: int) -> bool:
    bits = np.random.Philox(key=np.array([seed, position], np.uint64)).random_raw()
    return bool(bits >> 63)


def _iterate(read: _ReadBatch, start: int, steps: int, loader: Loader) -> Iterator[Batch]:
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
