"""Encodes the images of a source and writes them, a file at a time.

A file holds consecutive records and is encoded in batches of its own, in which every record has its
place: its bytes do not depend on which process writes it, after what, or on how many devices.
"""

import collections
import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from dit_jax.data import Loader, Record, Records, batches_in_order
from dit_jax.data.array_record import MIRRORED, count_records, open_shard, shard_name
from dit_jax.data.loader import Batch
from dit_jax.encoding.cache import Cache, claim_folder
from dit_jax.errors import InputError
from dit_jax.parallel import hosts
from dit_jax.parallel.local import LocalDevices, progress_bar, share_of

# Batches on the devices besides the one that is being written.
_AHEAD = 2

# Labels [b], and what is stored of the images, [B, ...] with B >= b: as they are, then mirrored.
_Encoded = tuple[np.ndarray, list[jax.Array]]


@dataclasses.dataclass(frozen=True)
class Written:
    """What a call of `write_cache` did, on all processes together.

    Attributes:
      folder: where the files are.
      records: records that were written.
      kept: records that were there already.
      seconds: time that took, compilation included.
    """

    folder: pathlib.Path
    records: int
    kept: int
    seconds: float


def write_cache(
    cache: Cache,
    out: str,
    *,
    batch_size: int = 32,
    loader: Loader = Loader(),  # noqa: B008
) -> Written:
    """Writes the files of a cache that are not there yet, each process its share of them.

    Args:
      cache: what to write.
      out: a folder that all processes see; the files go to its subfolder of the split's name.
      batch_size: images at once on each device; numbers may round otherwise with another one.
      loader: how images are read.

    Returns:
      What was done.

    Raises:
      InputError: the images or the autoencoder are not there, the folder holds something else, an
        image cannot be read, or `cache.dtype` cannot hold a number.
    """
    devices = LocalDevices(batch_size)
    records = cache.source.open(cache.split)
    encoder = _Encoder(cache, devices)
    folder = pathlib.Path(out).expanduser() / cache.split
    claim_folder(folder, cache, len(records))
    shards = _shards(folder, cache, len(records))
    missing = hosts.on_main(lambda: [n for n, shard in enumerate(shards) if not shard.is_whole()])
    begin = time.perf_counter()
    if mine := share_of(missing):
        _write([shards[n] for n in mine], records, cache.source.num_classes, encoder, loader)
    hosts.on_main(lambda: None)  # The others have written theirs.
    written = sum(len(shards[n].numbers) for n in missing)
    return Written(folder, written, len(records) - written, time.perf_counter() - begin)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Consecutive records, the file that they go to, and that of the mirrored images if need be."""

    numbers: range
    files: tuple[pathlib.Path, ...]

    def is_whole(self) -> bool:
        try:
            counts = [count_records(file) for file in self.files if file.exists()]
        except InputError:
            return False
        return counts == [len(self.numbers)] * len(self.files)

    def write(self, encoded: Iterable[_Encoded]) -> None:
        """Writes the files anew."""
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(open_shard(file)) for file in self.files]
            for labels, arrays in encoded:
                for write, array in zip(writers, arrays, strict=True):
                    rows = np.asarray(array)[: len(labels)]
                    self._check(rows)
                    for image, label in zip(rows, labels, strict=True):
                        write(Record(image=image, label=int(label)))

    def _check(self, rows: np.ndarray) -> None:
        if not np.isfinite(rows).all():
            raise InputError(
                f"among records {self.numbers[0]} to {self.numbers[-1]} is one whose latents "
                f"{rows.dtype} cannot hold: use --dtype float32, or look at the autoencoder"
            )


def _shards(folder: pathlib.Path, cache: Cache, count: int) -> list[_Shard]:
    """The files of `count` records."""
    folders = [folder, folder / MIRRORED] if cache.flips else [folder]
    parts = cache.parts(count)
    names = [shard_name(i, len(parts)) for i in range(len(parts))]
    return [
        _Shard(numbers, tuple(parent / name for parent in folders))
        for numbers, name in zip(parts, names)
    ]


class _Encoder:
    """Encodes batches of at most `devices.rows` images."""

    def __init__(self, cache: Cache, devices: LocalDevices):
        def store(params: Any, images: jax.Array, count: jax.Array) -> jax.Array:
            del count
            return cache.latents.store(params, images).astype(cache.dtype)

        self.devices = devices
        self._flips = cache.flips
        self._store = devices.compile(store, cache.latents.load(), batched=True)

    def __call__(self, batch: Batch) -> _Encoded:
        """Starts to encode a batch."""
        images = batch["image"]
        views = [images, images[:, :, ::-1]] if self._flips else [images]
        stored = [self._store(view) for view in views]
        for array in stored:
            array.copy_to_host_async()
        return batch["label"], stored


def _write(
    shards: list[_Shard], records: Records, num_classes: int, encoder: _Encoder, loader: Loader
) -> None:
    """Reads, encodes and writes, all at the same time."""
    spans = [encoder.devices.cut(shard.numbers) for shard in shards]
    batches = batches_in_order(
        records, list(itertools.chain(*spans)), num_classes=num_classes, loader=loader
    )
    encoded = _ahead(map(encoder, batches))
    total = sum(len(shard.numbers) for shard in shards)
    with contextlib.closing(batches), progress_bar() as progress:
        task = progress.add_task("encoding", total=total)

        def counted(batches: Iterable[_Encoded]) -> Iterator[_Encoded]:
            for labels, stored in batches:
                yield labels, stored
                progress.advance(task, len(labels))

        for shard, parts in zip(shards, spans):
            shard.write(counted(itertools.islice(encoded, len(parts))))


def _ahead(encoded: Iterable[_Encoded]) -> Iterator[_Encoded]:
    """Asks for batches before they are needed, for the devices work while files are written."""
    ready = collections.deque()
    for batch in encoded:
        ready.append(batch)
        if len(ready) > _AHEAD:
            yield ready.popleft()
    yield from ready
