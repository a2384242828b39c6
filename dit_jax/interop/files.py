"""Reading state dicts from disk: lazily, and without ever running what a pickle says."""

import argparse
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dit_jax.errors import InputError
from dit_jax.interop.graphdef import load_graph
from dit_jax.interop.legacy import load_legacy
from dit_jax.interop.stored import StoredTensor

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".index.json", ".pb")
# Wrappers that leave their name before every key: DataParallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
# What training scripts call the weights to sample with, then the others, in order of preference.
_GROUPS = ("ema", "ema_denoiser", "model", "denoiser", "state_dict", "teacher", "student")

# How PyTorch's hub names files: by the beginning of their SHA-256. Eight digits may be a date.
_NAMED_BY_CONTENT = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8})\.pth$")


@dataclasses.dataclass(frozen=True)
class StateDict:
    """A file's tensors by key.

    Attributes:
      tensors: the tensors, keys without wrappers' prefixes.
      group: which of the file's state dicts they are (`ema`, `model`), None if it has just one.
      passed_over: the other ones.
      files: what was read, for checksums.
      notes: what the header of a safetensors file says beside its tensors.
    """

    tensors: Mapping[str, StoredTensor]
    group: str | None
    passed_over: tuple[str, ...]
    files: tuple[pathlib.Path, ...]
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by key."""
        return {key: stored.shape for key, stored in self.tensors.items()}


def open_state_dict(path: str | pathlib.Path, group: str | None = None) -> StateDict:
    """Opens a file of PyTorch, safetensors or TensorFlow; tensors are read when asked for.

    Args:
      path: a file, a sharded file's `.index.json`, or a folder that holds one of either.
      group: which of several state dicts in the file; `ema` by default where there is one.

    Raises:
      InputError: the file is missing, damaged, of another kind, would run code, lacks the group, or
        is another one than its name says.
    """
    path = _find(pathlib.Path(path).expanduser())
    _check_name(path)
    if path.name.endswith(".index.json"):
        shards = _shards(path)
        parts = [open_state_dict(shard, group) for shard in shards]
        merged = {key: value for part in parts for key, value in part.tensors.items()}
        return StateDict(merged, parts[0].group, parts[0].passed_over, tuple(shards))
    openers = {".safetensors": _open_safetensors, ".pb": _open_graph}
    tree = openers.get(path.suffix, _open_pickle)(path)
    tree = _by_module(tree)
    chosen, passed_over = _choose_group(tree, group, path)
    tensors = _flatten(tree[chosen] if chosen else tree)
    if not tensors:
        raise InputError(f"'{path}' holds no tensors: give a checkpoint of weights")
    notes = _notes(path) if path.suffix == ".safetensors" else {}
    return StateDict(_strip_prefixes(tensors), chosen, passed_over, (path,), notes)


def checksum(files: Sequence[pathlib.Path]) -> str:
    """SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _check_name(path: pathlib.Path) -> None:
    named = _NAMED_BY_CONTENT.search(path.name)
    if named and not (found := checksum([path])).startswith(named[1]):
        raise InputError(
            f"'{path}' is damaged or another file: its SHA-256 begins with {found[:8]}, not with "
            f"the {named[1]} in its name; download it again, or rename it if it is yours"
        )


def _find(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        for suffix in (".index.json", ".safetensors", ".bin", ".pt", ".pth"):
            found = sorted(p for p in path.iterdir() if p.name.endswith(suffix))
            if len(found) == 1:
                return found[0]
        raise InputError(f"'{path}' holds no single weights file: name one of its files")
    if not path.is_file():
        raise InputError(f"no file '{path}'")
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"'{path}' is of an unknown kind: give one of {', '.join(SUFFIXES)}")
    return path


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"'{index}' is no index of sharded weights: it has no weight_map"
        ) from error
    shards = [index.parent / pathlib.PurePath(name).name for name in names]
    if missing := [str(shard) for shard in shards if not shard.is_file()]:
        raise InputError(f"'{index}' names files that are not there: {', '.join(missing)}")
    return shards


def _open_safetensors(path: pathlib.Path) -> dict[str, StoredTensor]:
    import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
    import safetensors

    def read(key: str) -> np.ndarray:
        # Opened anew each time: what is mapped counts as memory until it is closed.
        with safetensors.safe_open(path, "np") as handle:
            return handle.get_tensor(key)

    names = {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "I64": "int64",
    }
    try:
        with safetensors.safe_open(path, "np") as handle:
            slices = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118
            described = {k: (tuple(s.get_shape()), s.get_dtype()) for k, s in slices.items()}
    except Exception as error:  # SafetensorError, or what the header's JSON made it raise.
        raise InputError(f"'{path}' is damaged or no safetensors file: {error}") from error
    return {
        key: StoredTensor(shape, names.get(dtype, dtype), functools.partial(read, key))
        for key, (shape, dtype) in described.items()
    }


def _notes(path: pathlib.Path) -> dict[str, str]:
    import safetensors

    with safetensors.safe_open(path, "np") as handle:
        return handle.metadata() or {}


def _open_graph(path: pathlib.Path) -> dict[str, StoredTensor]:
    try:
        return load_graph(path)
    except Exception as error:  # Whatever a damaged file makes the reading raise.
        raise InputError(f"'{path}' is damaged or no TensorFlow graph: {error}") from error


def _open_pickle(path: pathlib.Path) -> Any:
    load = _load_zipped if zipfile.is_zipfile(path) else load_legacy
    try:
        return load(path)
    except InputError:
        raise
    except Exception as error:  # Whatever a hostile or truncated file makes it raise.
        raise InputError(_pickle_complaint(path, error)) from error


def _load_zipped(path: pathlib.Path) -> Any:
    torch = import_torch()
    # Training scripts save their parsed options beside the weights; a Namespace holds just values.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _pickle_complaint(path: pathlib.Path, error: Exception) -> str:
    found = re.search(
        r"(?:Unsupported global: GLOBAL|Unsupported class|GLOBAL) ([\w.]+)", str(error)
    )
    if found:
        return (
            f"'{path}' asks for '{found[1]}', which is not weights, and was not run: save its "
            f"state dict alone, or as .safetensors"
        )
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"'{path}' is damaged or no PyTorch file: {first}"


def import_torch() -> Any:
    """Imports torch.

    Raises:
      InputError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "PyTorch files need PyTorch: pip install 'dit_jax[torch]', or use .safetensors"
        ) from error
    return torch


def _by_module(tree: Any) -> Any:
    """Takes apart a Lightning checkpoint, whose one state dict holds a model and its average."""
    inner = tree.get("state_dict") if isinstance(tree, Mapping) else None
    if not isinstance(inner, Mapping):
        return tree
    modules: dict[str, dict] = {}
    for key, value in inner.items():
        module, _, rest = key.partition(".")
        modules.setdefault(module, {})[rest] = value
    return modules if modules.keys() & {"denoiser", "ema_denoiser"} else tree


def _choose_group(tree: Any, group: str | None, path: pathlib.Path) -> tuple[str | None, tuple]:
    if not isinstance(tree, Mapping):
        raise InputError(f"'{path}' holds a {type(tree).__name__}, not a state dict")
    groups = [name for name in tree if isinstance(tree[name], Mapping) and name in _GROUPS]
    if group is not None and group not in groups:
        has = f"it has {', '.join(groups)}" if groups else "it holds one bare state dict"
        raise InputError(f"'{path}' has no '{group}' weights: {has}")
    if not groups:
        return None, ()
    chosen = group or min(groups, key=_GROUPS.index)
    return chosen, tuple(name for name in groups if name != chosen)


def _flatten(tree: Mapping[str, Any]) -> dict[str, StoredTensor]:
    found = {}
    for key, value in tree.items():
        if isinstance(value, StoredTensor):
            found[key] = value
        elif hasattr(value, "dim") and hasattr(value, "numpy"):
            found[key] = StoredTensor(
                tuple(value.shape), str(value.dtype).removeprefix("torch."), _reader(value)
            )
    return found


def _reader(value: Any) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if str(value.dtype) != "torch.bfloat16":
            return value.detach().numpy()
        import ml_dtypes
        import torch

        return value.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)

    return read


def _strip_prefixes(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in tensors):
                tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
                stripped = True
    return tensors
