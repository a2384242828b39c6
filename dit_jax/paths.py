"""Folders here and in buckets (`gs://BUCKET/...`)."""

import pathlib

from etils import epath

from dit_jax.errors import InputError


def full_path(folder: epath.PathLike) -> epath.Path:
    """Returns the absolute path of a folder.

    Raises:
      InputError: it is in a bucket, and the library for such buckets is missing.
    """
    path = epath.Path(folder).expanduser()
    if not is_remote(path):
        return path.resolve()
    try:
        path.exists()
    except ImportError as error:
        raise InputError(f"'{folder}' needs a library: pip install gcsfs for gs://") from error
    return path  # `resolve` would take it for a folder here.


def is_remote(path: epath.Path) -> bool:
    """Whether a path is in a bucket."""
    return "://" in str(path)


def local_folder(folder: epath.PathLike) -> pathlib.Path:
    """Where a run's log, pictures and evaluation go: its folder, or `runs/NAME` if it is remote.

    What is in a bucket cannot be appended to, and what draws and plots knows local files alone.
    """
    path = epath.Path(folder).expanduser()
    return pathlib.Path("runs", path.name) if is_remote(path) else pathlib.Path(path)
