"""Files of PyTorch before 1.6: pickles, then bytes. Read without torch, and nothing in them runs.

Such a file holds five pickles: a magic number, a version, what machine wrote it, the objects, and
the names of storages. Every storage follows as its length and its elements.
"""

import collections
import functools
import os
import pathlib
import pickle
import types
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
import numpy as np

from dit_jax.interop.stored import StoredTensor

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}


def load_legacy(path: pathlib.Path) -> Any:
    """Returns the objects in a file, with a `StoredTensor` for every tensor or parameter.

    Raises:
      pickle.UnpicklingError: it asks for something else than weights, or is damaged.
      Exception: whatever else a hostile or truncated file makes the unpickling raise.
    """
    with path.open("rb") as stream:
        unpickler = _Unpickler(stream, path)
        magic, version, machine, tree, names = (unpickler.load() for _ in range(5))
        if (magic, version) != (_MAGIC, _VERSION) or not machine["little_endian"]:
            raise pickle.UnpicklingError("it begins as no such file does")
        _find_storages(stream, names, unpickler.storages)
    return tree


class _Storage:
    """The numbers that tensors are views of; `start` is where in the file they begin."""

    def __init__(self, dtype: np.dtype, length: int):
        self.dtype, self.length, self.start = dtype, length, None


class _View(NamedTuple):
    """Where in a storage a tensor's elements are, counted in elements."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def length(self) -> int:
        """Number of elements from the first to behind the last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides))

    def fits(self, storage: _Storage) -> bool:
        numbers = (self.offset, *self.shape, *self.strides)
        whole = all(type(n) is int and n >= 0 for n in numbers)
        return (
            whole
            and len(self.shape) == len(self.strides)
            and self.offset + self.length() <= storage.length
        )


class _Unpickler(pickle.Unpickler):
    """Knows tensors, and the plain containers that hold them.

    A pickle can set attributes of what it is given. So it has storages and dtypes by name alone.
    """

    def __init__(self, stream: BinaryIO, path: pathlib.Path):
        super().__init__(stream, encoding="utf-8")  # Python 2 wrote some of these files.
        self.storages: dict[str, _Storage] = {}
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            # A script's parsed options.
            ("argparse", "Namespace"): types.SimpleNamespace,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
        }
        dtype = _DTYPES.get(name.removesuffix("Storage"))
        if module == "torch" and name.endswith("Storage") and dtype is not None:
            return dtype
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> str:
        kind, dtype, name, _, length, view = pid
        if kind != "storage" or dtype not in _DTYPES.values() or view is not None:
            raise pickle.UnpicklingError(f"no storage of numbers: {name}")
        self.storages.setdefault(str(name), _Storage(np.dtype(dtype), length))
        return str(name)

    def _tensor(
        self, name: str, offset: int, shape: Sequence, strides: Sequence, *_: Any
    ) -> StoredTensor:
        storage, view = self.storages[name], _View(offset, tuple(shape), tuple(strides))
        if not view.fits(storage):
            raise pickle.UnpicklingError("a tensor is larger than its storage")
        read = functools.partial(_read, self._path, storage, view)
        return StoredTensor(view.shape, storage.dtype.name, read)

    def _parameter(self, tensor: StoredTensor, *_: Any) -> StoredTensor:
        return tensor


def _find_storages(stream: BinaryIO, names: Sequence[str], storages: dict[str, _Storage]) -> None:
    """Notes where every storage begins."""
    size = os.fstat(stream.fileno()).st_size
    for name in names:
        storage = storages[name]
        length = int.from_bytes(stream.read(8), "little")
        storage.start = stream.tell()
        end = storage.start + length * storage.dtype.itemsize
        if length != storage.length or end > size:
            raise pickle.UnpicklingError("it ends before its last number")
        stream.seek(end)
    if missing := [name for name, storage in storages.items() if storage.start is None]:
        raise pickle.UnpicklingError(f"it lacks the storage {missing[0]}")


def _read(path: pathlib.Path, storage: _Storage, view: _View) -> np.ndarray:
    size = storage.dtype.itemsize
    numbers = np.fromfile(
        path, storage.dtype, view.length(), offset=storage.start + view.offset * size
    )
    strides = tuple(size * stride for stride in view.strides)
    # Unlike as_strided, this refuses to reach beyond the numbers, should the file have changed.
    return np.ndarray(view.shape, storage.dtype, numbers, strides=strides)
