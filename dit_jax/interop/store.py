"""Converted weights on disk, written and read one layer at a time."""

import dataclasses
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax import serialization
from dit_jax.checkpoint import Checkpoints, ema_item, newest
from dit_jax.errors import InputError
from dit_jax.interop.engine import Plan, TorchTensor, by_path, to_jax, to_torch
from dit_jax.interop.layout import Found
from dit_jax.interop.rules import Entry, Fixed, Rule
from dit_jax.interop.stored import StoredTensor
from dit_jax.models.inputs import example_inputs
from dit_jax.progress import track
from dit_jax.training.reconstruction.experiment import DecoderExperiment

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

    A failure leaves nothing behind.

    Raises:
      InputError: the folder is there already, or a value does not fit, see `to_jax`.
      TrainingError: the disk refused.
    """
    target = new_folder(folder)
    scratch = target.with_name(target.name + ".incomplete")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _write(str(scratch), plan, tensors, found, source)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def new_folder(folder: str) -> pathlib.Path:
    """Path of a folder that is to be made.

    Raises:
      InputError: it is there already.
    """
    path = pathlib.Path(folder).expanduser()
    if path.exists():
        raise InputError(f"'{folder}' is there already: choose another folder")
    return path


def _write(
    folder: str,
    plan: Plan,
    tensors: Mapping[str, StoredTensor],
    found: Found,
    source: Source,
) -> None:
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
    for _ in track(pieces, "converting", len(plan.pieces)):
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
        self.found, decays, within = _saved(self._metadata)
        source = self._metadata.get("source")
        self.source = source and Source(**source)
        decay = (decays or (None,))[0] if ema == "first" else ema
        if decay is not None and decay not in decays:
            raise InputError(f"'{folder}' has no EMA of decay {decay}: it has {decays or 'none'}")
        item = _PARAMS if decay is None else ema_item(decay)
        paths = by_path(self.found.abstract())
        self._arrays = {p: self._checkpoints.array(self._step, item, within + p) for p in paths}
        self.dtypes = {p: array.dtype.numpy_dtype for p, array in self._arrays.items()}

    def read(self, path: str, layer: int | None) -> np.ndarray:
        """Reads one layer of a parameter, or all of it."""
        return self._arrays[path][slice(None) if layer is None else layer].read().result()

    def tensors(self, entries: Iterable[Entry]) -> list[TorchTensor]:
        """Lists the tensors of the state dict that `entries` describe."""
        entries = list(entries)
        carried = self.carried(entries)
        came = {tensor.key for tensor in carried}
        made = to_torch(entries, self.found.abstract(), self.dtypes, self.read)
        return [tensor for tensor in made if tensor.key not in came] + carried

    def carried(self, entries: Iterable[Entry]) -> list[TorchTensor]:
        """Lists those tensors that came along beside the parameters."""
        keys = self._metadata.get(_CARRIED, ())
        return [self._carried(key) for key in keys if _takes(entries, key)]

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


def _saved(metadata: dict[str, Any]) -> tuple[Found, tuple[float, ...], str]:
    """The model, decays of its averages, and what stands before the paths of its parameters."""
    notes, shape = metadata.get("notes", {}), tuple(metadata["shape"])
    if "module" in metadata:
        module = serialization.from_json(metadata["module"])
        return Found(module, _example(shape), notes=notes), (), ""
    experiment = serialization.from_json(metadata["experiment"])
    if isinstance(experiment, DecoderExperiment):
        latents = experiment.latents
        decoder = Found(latents.decoder, _example(latents.shape(experiment.shape)))
        return decoder, experiment.training.ema, "decoder/"
    found = Found(experiment.model, example_inputs(shape), experiment, notes)
    return found, experiment.training.ema, ""


def _example(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    return jax.random.key(0), jnp.zeros((1, *shape))


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
