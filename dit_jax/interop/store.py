"""Converted weights on disk, written and read one layer at a time."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from dit_jax import serialization
from dit_jax.checkpoint import Checkpoints, ema_item, newest
from dit_jax.errors import InputError
from dit_jax.interop.engine import Plan, TorchTensor, by_path, to_jax, to_torch
from dit_jax.interop.files import StoredTensor
from dit_jax.interop.layout import Found
from dit_jax.interop.rules import Entry, Fixed, Rule
from dit_jax.models.inputs import example_inputs

_PARAMS, _CARRIED = "params", "carried"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where converted weights come from, kept with them.

    Attributes:
      file: name of the file.
      sha256: checksum of the file, or of a sharded file's parts in order.
      layout: whose keys they were.
      group: which of the file's state dicts, if it had several.
      licence: the authors' licence, which conversion does not change.
    """

    file: str
    sha256: str
    layout: str
    group: str | None
    licence: str | None


def write_converted(
    folder: str,
    plan: Plan,
    tensors: Mapping[str, StoredTensor],
    found: Found,
    source: Source,
) -> None:
    """Writes a checkpoint as a plan says; dtypes stay what they were, `load` casts to float32.

    Raises:
      InputError: a value does not fit, see `to_jax`.
      TrainingError: the disk refused.
    """
    targets = by_path(found.abstract())
    dtypes = {piece.rule.path: tensors[piece.keys[0]].dtype for piece in plan.pieces}
    new = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtypes.get(path, leaf.dtype)))
        for path, leaf in targets.items()
    }
    # Fixed tables go along too: their last bits are not those that are computed here.
    carried = {
        key: jax.ShapeDtypeStruct(tensors[key].shape, jnp.dtype(tensors[key].dtype))
        for key in (*plan.carried, *(fixed.key for fixed in plan.fixed))
    }
    items = {_PARAMS: _unflatten(new)} | ({_CARRIED: carried} if carried else {})
    checkpoints = Checkpoints(folder)
    checkpoints.reserve(items, _metadata(found, source, list(carried)))
    arrays = {path: checkpoints.array(0, _PARAMS, path, leaf) for path, leaf in new.items()}

    def write(path: str, layer: int | None, value: np.ndarray) -> None:
        arrays[path][slice(None) if layer is None else layer].write(value).result()

    pieces = to_jax(plan, lambda key: tensors[key].read(), write)
    for _ in track(pieces, "converting", total=len(plan.pieces), transient=True):
        pass
    for key, leaf in carried.items():
        checkpoints.array(0, _CARRIED, key, leaf).write(tensors[key].read()).result()
    for path, value in _initial(found, plan.fresh).items():
        write(path, None, value)
    checkpoints.close()


class Converted:
    """A checkpoint's weights, read in parts: of a run, or what `write_converted` wrote.

    Attributes:
      found: the model.
      source: where its weights come from; None for a run trained here.
      dtypes: dtype of each parameter on disk, by path.
    """

    def __init__(self, folder: str, ema: float | None | str):
        """Opens the newest checkpoint in `folder`; see `convert_to_torch` for `ema`.

        Raises:
          InputError: there is none, or it lacks that EMA.
        """
        self._checkpoints, self._step = newest(folder)
        self._metadata = self._checkpoints.metadata(self._step)
        self.found = _saved(self._metadata)
        source = self._metadata.get("source")
        self.source = source and Source(**source)
        decays = self.found.experiment.training.ema if self.found.experiment else ()
        decay = (decays or (None,))[0] if ema == "first" else ema
        if decay is not None and decay not in decays:
            raise InputError(f"'{folder}' has no EMA of decay {decay}: it has {decays or 'none'}")
        item = _PARAMS if decay is None else ema_item(decay)
        paths = by_path(self.found.abstract())
        self._arrays = {p: self._checkpoints.array(self._step, item, p) for p in paths}
        self.dtypes = {p: array.dtype.numpy_dtype for p, array in self._arrays.items()}

    def read(self, path: str, layer: int | None) -> np.ndarray:
        """Reads one layer of a parameter, or all of it."""
        return self._arrays[path][slice(None) if layer is None else layer].read().result()

    def tensors(self, entries: Iterable[Entry]) -> list[TorchTensor]:
        """Lists the tensors of the state dict that `entries` describe."""
        entries = list(entries)
        listed = list(to_torch(entries, self.found.abstract(), self.dtypes, self.read))
        carried = [key for key in self._metadata.get(_CARRIED, ()) if _takes(entries, key)]
        listed = [tensor for tensor in listed if tensor.key not in carried]
        return listed + [self._carried(key) for key in carried]

    def _carried(self, key: str) -> TorchTensor:
        array = self._checkpoints.array(self._step, _CARRIED, key)
        read = lambda: array.read().result()  # noqa: E731
        return TorchTensor(key, tuple(array.shape), array.dtype.numpy_dtype, read)


def _takes(entries: Iterable[Entry], key: str) -> bool:
    """Whether a layout has a place for a tensor that came along."""
    return any(
        entry.key == key if isinstance(entry, Fixed) else bool(re.fullmatch(entry.pattern, key))
        for entry in entries
        if not isinstance(entry, Rule)
    )


def _metadata(found: Found, source: Source, carried: list[str]) -> dict[str, Any]:
    metadata = {"source": dataclasses.asdict(source), "notes": found.notes, _CARRIED: carried}
    metadata["shape"] = list(found.inputs[1].shape[1:])
    if found.experiment is None:
        return metadata | {"module": serialization.to_json(found.module)}
    return metadata | {"experiment": serialization.to_json(found.experiment)}


def _saved(metadata: dict[str, Any]) -> Found:
    notes = metadata.get("notes", {})
    if "experiment" in metadata:
        experiment = serialization.from_json(metadata["experiment"])
        inputs = example_inputs(tuple(metadata["shape"]))
        return Found(experiment.model, inputs, experiment, notes)
    module = serialization.from_json(metadata["module"])
    return Found(module, (jax.random.key(0), jnp.zeros((1, *metadata["shape"]))), notes=notes)


def _unflatten(by_path: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in by_path.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _initial(found: Found, paths: Iterable[str]) -> dict[str, np.ndarray]:
    """Fresh values of some parameters alone."""
    wanted = set(paths)
    if not wanted:
        return {}

    @jax.jit
    def init() -> dict[str, jax.Array]:
        params = by_path(found.module.init(*found.inputs)["params"])
        return {path: leaf for path, leaf in params.items() if path in wanted}

    return {path: np.asarray(leaf) for path, leaf in init().items()}
