"""What a checkpoint holds, from its metadata alone: no array is read."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from dit_jax.checkpoint import newest
from dit_jax.errors import InputError
from dit_jax.interop.engine import by_path


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """One array on disk.

    Attributes:
      shape: shape of the whole array.
      dtype: its NumPy dtype.
      chunk: shape of the parts that are stored, and read, as one.
      spec: mesh axes, longer than one device, that divided each axis when it was saved; None where
        that is not recorded.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    spec: tuple[tuple[str, ...], ...] | None

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def chunks(self) -> int:
        """Number of parts."""
        return math.prod(math.ceil(n / c) for n, c in zip(self.shape, self.chunk))


@dataclasses.dataclass(frozen=True)
class StoredItem:
    """One tree of arrays: the parameters, the optimizer's state, or an average.

    Attributes:
      tree: the tree, with a `StoredArray` for each array.
      files: number of files.
      bytes_on_disk: their size.
      mesh: axes of the mesh it was saved from; None where that is not recorded.
    """

    tree: Any
    files: int
    bytes_on_disk: int
    mesh: dict[str, int] | None

    @property
    def arrays(self) -> dict[str, StoredArray]:
        """The arrays by path."""
        return by_path(self.tree)

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return sum(array.bytes for array in self.arrays.values())


@dataclasses.dataclass(frozen=True)
class Stored:
    """One checkpoint.

    Attributes:
      path: its folder.
      step: optimizer steps taken.
      items: what is saved, by name.
      metadata: the JSON beside the arrays: the experiment, where it comes from.
    """

    path: str
    step: int
    items: dict[str, StoredItem]
    metadata: dict[str, Any]


def read_contents(folder: str) -> Stored:
    """Reads what a checkpoint holds.

    Args:
      folder: a run folder (its newest checkpoint is taken), or one of its checkpoints.

    Raises:
      InputError: there is no checkpoint, or its metadata cannot be read.
    """
    checkpoints, step = newest(folder)
    path = checkpoints.folder / str(step)
    try:
        items = {name: _read_item(path / name) for name in checkpoints.items(step)}
        return Stored(str(path), step, items, checkpoints.metadata(step))
    except Exception as error:  # Orbax and TensorStore raise whatever they met.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"'{path}' cannot be read: {reason}") from error


def _read_item(path: epath.Path) -> StoredItem:
    found = ocp.StandardCheckpointHandler().metadata(path).tree
    sizes = [(root / file).stat().length for root, _, files in path.walk() for file in files]
    named = [leaf.sharding for leaf in jax.tree.leaves(found) if _mesh(leaf.sharding)]
    mesh = _mesh(named[0]) if named else None
    return StoredItem(jax.tree.map(_array, found), len(sizes), sum(sizes), mesh)


def _array(leaf: Any) -> StoredArray:
    spec = getattr(leaf.sharding, "partition_spec", None)
    chunk = leaf.storage.chunk_shape
    return StoredArray(
        tuple(leaf.shape),
        np.dtype(leaf.dtype),
        tuple(chunk),
        None if spec is None else tuple(_longer(axes, _mesh(leaf.sharding)) for axes in spec),
    )


def _longer(axes: str | list[str] | None, mesh: dict[str, int]) -> tuple[str, ...]:
    names = [axes] if isinstance(axes, str) else axes or []
    return tuple(name for name in names if mesh[name] > 1)


def _mesh(sharding: Any) -> dict[str, int] | None:
    """Axes of a mesh that Orbax recorded."""
    names = getattr(sharding, "axis_names", None)
    return names and dict(zip(names, map(int, sharding.shape)))
