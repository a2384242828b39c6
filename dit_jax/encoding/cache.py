"""What makes the files of a cache what they are, and whose a folder is."""

import dataclasses
import json
import pathlib
from typing import Any, Literal

from dit_jax import serialization
from dit_jax.data import Source, Split
from dit_jax.data.array_record import MIRRORED
from dit_jax.errors import InputError
from dit_jax.latents import Cached, Latents
from dit_jax.parallel import hosts

RECORD = "cache.json"


@dataclasses.dataclass(frozen=True)
class Cache:
    """One split of a source, encoded; these fields decide what the files hold.

    The training split of a source that mirrors images (`flip`) is encoded mirrored as well.

    Attributes:
      latents: the space, which encodes.
      source: the images.
      split: which of them.
      dtype: of the numbers that are stored.
      shard_size: records a file.
    """

    latents: Latents
    source: Source
    split: Split = "train"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    shard_size: int = 4096

    def __post_init__(self):
        if isinstance(self.latents, Cached):
            raise InputError(
                "this configuration reads latents that are cached already: give one that encodes "
                "images, such as configs/dit_xl_images.py"
            )
        if self.shard_size < 1:
            raise InputError(f"--shard-size {self.shard_size}: it must be at least 1")

    @property
    def flips(self) -> bool:
        """Whether mirrored images are encoded too."""
        return self.source.flip and self.split == "train"

    def parts(self, count: int) -> list[range]:
        """Numbers of the records of each file, where there are `count` of them."""
        starts = range(0, count, self.shard_size)
        return [range(start, min(start + self.shard_size, count)) for start in starts]


def claim_folder(folder: pathlib.Path, cache: Cache, count: int) -> None:
    """Makes a folder that of a cache, on the main process.

    Args:
      folder: where the files are to be, made if missing.
      cache: what they hold.
      count: number of records.

    Raises:
      InputError: it holds another cache, or other files, or cannot be written to.
    """
    hosts.on_main(lambda: _claim(folder, cache, count))


def _claim(folder: pathlib.Path, cache: Cache, count: int) -> None:
    record = folder / RECORD
    content = {"cache": serialization.to_json(cache), "records": count}
    try:
        if not record.exists():
            _make(record, content)
        elif changed := _differences(json.loads(record.read_text()), content):
            raise InputError(
                f"'{folder}' holds another cache ({'; '.join(changed)}): choose another folder, or "
                f"remove this one"
            )
        if cache.flips:
            (folder / MIRRORED).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to '{folder}': {error.strerror}") from error


def _make(record: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes the record of what is to come into a new or empty folder."""
    record.parent.mkdir(parents=True, exist_ok=True)
    scratch = record.with_suffix(".tmp")
    if set(record.parent.iterdir()) - {scratch}:
        raise InputError(f"'{record.parent}' holds files that are no cache: choose another folder")
    scratch.write_text(json.dumps(content, indent=2) + "\n")
    scratch.replace(record)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    caches = (serialization.from_json(content["cache"]) for content in (old, new))
    changed = serialization.differences(*caches)
    if old["records"] != new["records"]:
        changed.append(f"records: {old['records']} -> {new['records']}")
    return changed
