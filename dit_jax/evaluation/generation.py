"""Samples by the ten thousand: on disk as they come, gone on with where a call was stopped."""

import dataclasses
import json
import pathlib
import zipfile
from typing import Any

import numpy as np
import rich.progress

from dit_jax.metrics.images import ImageFile
from dit_jax.parallel import hosts
from dit_jax.run import Run
from dit_jax.sampling import sample_batches


@dataclasses.dataclass(frozen=True)
class _Files:
    """What generation leaves in a folder."""

    folder: pathlib.Path

    @property
    def samples(self) -> pathlib.Path:
        return self.folder / "samples.npz"

    @property
    def part(self) -> pathlib.Path:
        """The samples so far."""
        return self.folder / "samples.part"

    @property
    def record(self) -> pathlib.Path:
        """What the samples are, and how many of them there are."""
        return self.folder / "samples.json"

    def done(self, protocol: dict[str, Any]) -> int:
        """How many samples of this protocol are there."""
        if not self.record.exists():
            return 0
        record = json.loads(self.record.read_text())
        whole = record["done"] == protocol["samples"]
        there = self.samples if whole else self.part
        return record["done"] if record["protocol"] == protocol and there.exists() else 0

    def write_record(self, protocol: dict[str, Any], done: int) -> None:
        new = self.record.with_suffix(".new")
        new.write_text(json.dumps({"done": done, "protocol": protocol}, indent=2) + "\n")
        new.replace(self.record)


def generate(
    run: Run,
    labels: np.ndarray,
    folder: pathlib.Path,
    protocol: dict[str, Any],
    *,
    batch_size: int,
    **sampling: Any,
) -> ImageFile:
    """Draws samples into `folder/samples.npz`, in ADM's format, and keeps none in memory.

    Sample i is a function of the run, the protocol and i alone, whatever the devices. What a call
    that was stopped has left is gone on with; samples of another protocol are drawn over.

    Args:
      run: what draws.
      labels: a class for each sample, [N].
      folder: where to write; the first process does.
      protocol: all that decides what the samples are, as JSON holds it, and their number `samples`.
      batch_size: samples at once, over all devices.
      **sampling: as for `dit_jax.sample`.

    Returns:
      The samples.

    Raises:
      InputError: what is asked for does not fit the run.
    """
    files, protocol = _Files(folder), json.loads(json.dumps(protocol))
    hosts.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    done = hosts.on_main(lambda: files.done(protocol))
    if done < len(labels):
        batches = sample_batches(run, labels, batch_size, first=done, **sampling)
        _write(batches, files, protocol, done)
        hosts.on_main(lambda: _finish(files, protocol))
    return ImageFile.open(str(files.samples))


def _write(batches: Any, files: _Files, protocol: dict[str, Any], done: int) -> None:
    total, images = protocol["samples"], None
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        disable=not hosts.is_main(),
    ) as progress:
        task = progress.add_task("sampling", total=total, completed=done)
        for batch in batches:
            if not hosts.is_main():
                continue
            if images is None:
                mode, shape = ("r+" if done else "w+"), (total, *batch.shape[1:])
                images = np.lib.format.open_memmap(files.part, mode, np.uint8, shape)
            images[done : done + len(batch)] = batch
            images.flush()
            done += len(batch)
            if done < total:
                files.write_record(protocol, done)
            progress.update(task, completed=done)


def _finish(files: _Files, protocol: dict[str, Any]) -> None:
    """Makes an .npz of the samples, which has its name once it is whole."""
    new = files.samples.with_suffix(".new")
    with (
        zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array(file, np.load(files.part, mmap_mode="r"))
    new.replace(files.samples)
    files.write_record(protocol, protocol["samples"])
    files.part.unlink()
