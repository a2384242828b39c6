"""Samples by the ten thousand: on disk as they come, gone on with where a call was stopped."""

import dataclasses
import io
import json
import logging
import pathlib
import shutil
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.progress import MofNCompleteColumn

from dit_jax.errors import TrainingError
from dit_jax.parallel import hosts
from dit_jax.progress import Progress
from dit_jax.run import Run
from dit_jax.sampling import sample_batches

log = logging.getLogger(__name__)


def generate(
    run: Run,
    labels: np.ndarray,
    folder: pathlib.Path,
    protocol: dict[str, Any],
    *,
    batch_size: int,
    **sampling: Any,
) -> pathlib.Path:
    """Draws samples into `folder/samples.npz`, in ADM's format, and keeps none in memory.

    What a call that was stopped has left is gone on with. Samples of another protocol are drawn
    over, and a line in the log says so. The disk holds all samples twice for a moment.

    Args:
      run: what draws.
      labels: a class for each sample, [N].
      folder: where to write; the first process does.
      protocol: all that decides what the samples are, as JSON holds it.
      batch_size: samples at once, over all devices.
      **sampling: as for `dit_jax.sample`.

    Returns:
      The file, which the first process sees.

    Raises:
      InputError: what is asked for does not fit the run.
      TrainingError: the disk refused.
    """
    files, count = _Files(folder, json.loads(json.dumps(protocol))), len(labels)
    done = hosts.on_main(lambda: files.begin(count))
    if done < count or not hosts.on_main(files.samples.exists):
        batches = sample_batches(run, labels, batch_size, first=done, **sampling)
        _write(batches, files, done, count)
        hosts.on_main(files.finish)
    return files.samples


@dataclasses.dataclass(frozen=True)
class _Files:
    """What generation leaves in a folder, of samples of one protocol."""

    folder: pathlib.Path
    protocol: dict[str, Any]

    @property
    def samples(self) -> pathlib.Path:
        return self.folder / "samples.npz"

    @property
    def part(self) -> pathlib.Path:
        """An .npy file that grows to its end."""
        return self.folder / "samples.part"

    @property
    def record(self) -> pathlib.Path:
        """The protocol: whatever else is in the folder is of it."""
        return self.folder / "samples.json"

    def begin(self, count: int) -> int:
        """Returns how many samples are there, and makes room for others if none are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._is_ours():
            if self.samples.exists():
                return count
            if self.part.exists() and (done := self._part_rows(count)):
                return done
        if self.samples.exists():
            log.warning("samples of another protocol in %s are drawn over", self.folder)
        for path in (self.record, self.samples, self.part):
            path.unlink(missing_ok=True)
        new = self.record.with_suffix(".json.new")
        new.write_text(json.dumps(self.protocol, indent=2) + "\n")
        new.replace(self.record)
        return 0

    def _is_ours(self) -> bool:
        try:
            return json.loads(self.record.read_text()) == self.protocol
        except (OSError, ValueError):
            return False

    def _part_rows(self, count: int) -> int:
        """Whole samples in the part, which is cut off after them; 0 if it is none of `count`."""
        with self.part.open("r+b") as file:
            try:
                np.lib.format.read_magic(file)
                shape, _, _ = np.lib.format.read_array_header_1_0(file)
            except ValueError:
                return 0
            head, size = file.tell(), int(np.prod(shape[1:]))
            rows = (self.part.stat().st_size - head) // size
            file.truncate(head + rows * size)
        return rows if shape[0] == count else 0

    def finish(self) -> None:
        """Makes an .npz of the part, which has its name once it is whole."""
        new = self.samples.with_suffix(".npz.new")
        with (
            self.part.open("rb") as part,
            zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as file,
        ):
            shutil.copyfileobj(part, file, 1 << 24)
        new.replace(self.samples)
        self.part.unlink()


def _write(batches: Iterator[np.ndarray], files: _Files, done: int, count: int) -> None:
    """Appends batches to the part, on the main process."""
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    with Progress(*columns, disable=not hosts.is_main()) as progress:
        task = progress.add_task("sampling", total=count, completed=done)
        for batch in batches:
            if not hosts.is_main():
                continue
            try:
                with files.part.open("ab") as file:
                    if not file.tell():
                        file.write(_head((count, *batch.shape[1:])))
                    file.write(batch.tobytes())
            except OSError as error:
                raise TrainingError(f"{files.part} cannot be written ({error})") from error
            done += len(batch)
            progress.update(task, completed=done)


def _head(shape: tuple[int, ...]) -> bytes:
    """The head of an .npy file of bytes."""
    head = io.BytesIO()
    layout = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, layout)
    return head.getvalue()
