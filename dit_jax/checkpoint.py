"""Checkpoints: what is saved, and how to get the newest good one back (Orbax).

A run folder holds `checkpoints/<step>/`, each with one item for the parameters, the optimizer and
every EMA, so that a reader takes only what it needs, and `metadata`: the experiment and the shape
of its samples, from which all the rest is built.
"""

import logging
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from dit_jax import serialization
from dit_jax.errors import InputError, TrainingError
from dit_jax.experiment import Experiment
from dit_jax.parallel import hosts
from dit_jax.parallel.sharding import place
from dit_jax.paths import full_path
from dit_jax.training.state import TrainState

FOLDER = "checkpoints"
_METADATA = "metadata"

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run folder; saving is asynchronous and atomic."""

    def __init__(self, run_folder: str, keep: int | None = None, keep_every: int | None = None):
        """Opens the run's checkpoints.

        Args:
          run_folder: the run's folder, local or remote.
          keep: newest checkpoints to keep; None keeps all.
          keep_every: also keep those whose step is a multiple of this.
        """
        self.folder = full_path(run_folder) / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, keep_period=keep_every)
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, handler_registry=_handlers()
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return complete_steps(self.folder)

    def save(self, state: TrainState, experiment: Any) -> None:
        """Starts to save the state under its step; the arrays may be reused at once.

        Raises:
          TrainingError: this or the save before failed, a full disk say.
        """
        metadata = {
            "experiment": serialization.to_json(experiment),
            "shape": list(experiment.shape),
        }
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in state_items(state).items()}
        items[_METADATA] = ocp.args.JsonSave(metadata)
        with _SaveErrors(self):
            self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def save_items(self, items: dict[str, Any], metadata: dict[str, Any], step: int = 0) -> None:
        """Saves trees of arrays, and waits until they are on disk; all processes call it.

        Args:
          items: name -> tree.
          metadata: what `metadata` gives back.
          step: whose checkpoint it is.

        Raises:
          TrainingError: the save failed.
        """
        args = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
        with _SaveErrors(self):
            args[_METADATA] = ocp.args.JsonSave(metadata)
            self._manager.save(step, args=ocp.args.Composite(**args))
            self._manager.wait_until_finished()

    def reserve(self, items: dict[str, Any], metadata: dict[str, Any], step: int = 0) -> None:
        """Saves a checkpoint whose arrays are one zero each, to be written by `array` afterwards.

        So a checkpoint can be made that is larger than memory.

        Args:
          items: trees of anything with a `dtype`.
          metadata: what `metadata` gives back.
          step: whose checkpoint it is.

        Raises:
          TrainingError: the save failed.
        """
        zeros = jax.tree.map(lambda leaf: np.zeros(1, leaf.dtype), items)
        self.save_items(zeros, metadata, step)

    def array(
        self,
        step: int,
        item: str,
        path: str,
        new: Any = None,
        chunk: tuple[int, ...] | None = None,
    ) -> tensorstore.TensorStore:
        """Opens one array on disk, to be read or written in parts.

        Args:
          step: a step, of a complete checkpoint.
          item: name of a saved tree.
          path: path in that tree, such as `blocks/layers/ffn/fc1/kernel`.
          new: replaces it by an empty array of this `shape` and `dtype`.
          chunk: shape of what is stored and read as one, of a new array; one entry of axis 0 by
            default.
        """
        spec = {
            "driver": "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": (self.folder / str(step) / item).as_uri() + "/",
                "path": path.replace("/", ".") + "/",
            },
        }
        if new is None:
            return tensorstore.open(spec, read=True, open=True).result()
        if chunk is None:
            chunk = (1, *new.shape[1:]) if len(new.shape) > 1 else new.shape
        return tensorstore.open(
            # As Orbax writes them: no part is left out for being zero.
            spec | {"metadata": {"compressor": None}, "store_data_equal_to_fill_value": True},
            shape=new.shape,
            dtype=new.dtype,
            chunk_layout=tensorstore.ChunkLayout(chunk_shape=chunk),
            create=True,
            delete_existing=True,
        ).result()

    def wait(self) -> None:
        """Waits until all that was saved is on disk.

        Raises:
          TrainingError: a save failed.
        """
        with _SaveErrors(self):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases threads."""
        self.wait()
        self._manager.close()

    def items(self, step: int) -> list[str]:
        """Names of the trees saved at a step."""
        folder = self.folder / str(step)
        return sorted(path.name for path in folder.iterdir() if (path / "_METADATA").exists())

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the JSON values saved at a step beside its arrays."""
        item = ocp.args.Composite(**{_METADATA: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=item)[_METADATA]

    def experiment(self, step: int) -> tuple[Experiment, tuple[int, int, int]]:
        """Returns the experiment saved at a step and the shape of its samples.

        Raises:
          InputError: it is not a run's checkpoint but one of bare weights.
        """
        metadata = self.metadata(step)
        if "experiment" not in metadata:
            raise InputError(f"'{self.folder.parent}' holds weights, not a run to sample from")
        experiment = serialization.from_json(metadata["experiment"])
        if not isinstance(experiment, Experiment):
            raise InputError(
                f"'{self.folder.parent}' holds a decoder, not a model to sample from: it is what "
                f"--latents.decoder-weights of another run may name"
            )
        return experiment, tuple(metadata["shape"])

    def restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Reads items of one checkpoint into the shapes and shardings of `abstract`.

        Each process reads what its own devices need, from whatever parts the files have.

        Raises:
          InputError: the checkpoint lacks an item.
        """
        there = self.items(step)
        for name in abstract:
            if name not in there:
                path, others = self.folder / str(step), ", ".join(there)
                raise InputError(f"'{path}' has no '{name}': it has {others or 'nothing'}")
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())

    def restore_newest(self, abstract: TrainState) -> TrainState | None:
        """Reads the newest checkpoint that can be read; None if there is none at all.

        A checkpoint that cannot be read is named, moved out of the way to `damaged/` and never
        deleted.

        Raises:
          TrainingError: there are checkpoints and none can be read, or none has all that it takes.
        """
        steps = hosts.on_main(self.steps)
        damaged: list[int] = []
        for step in reversed(steps):
            items = self._try_restore(step, abstract)
            # Each process reads its own shards: what one cannot read, none may use.
            if hosts.anywhere(items is None):
                damaged.append(step)
                continue
            hosts.on_main(lambda: self._set_aside(damaged))
            if damaged:
                self._manager.reload()
            log.info("resumed from %s", self.folder / str(step))
            return _from_items(step, items, abstract)
        if steps:
            raise TrainingError(
                f"none of the {len(steps)} checkpoints under {self.folder} can be resumed from: "
                f"restore one from a backup, or start in another --run.dir (--init-from "
                f"{self.folder.parent} takes the parameters along)"
            )
        return None

    def _try_restore(self, step: int, abstract: TrainState) -> dict[str, Any] | None:
        try:
            return self.restore(step, state_items(abstract))
        except AssertionError:  # What `fail_together` on another process makes of Orbax's barrier.
            reason = "another process could not"
        except Exception as error:  # Orbax and TensorStore raise whatever they met.
            hosts.fail_together()
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.error("checkpoint %s cannot be read: %s", self.folder / str(step), reason)
        return None

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            target = self.folder.parent / "damaged" / str(step)
            target.parent.mkdir(parents=True, exist_ok=True)
            while target.exists():
                target = target.with_name(target.name + "_")
            (self.folder / str(step)).rename(target)
            log.warning("moved the damaged checkpoint to %s", target)


def complete_steps(folder: epath.PathLike) -> list[int]:
    """Steps of the complete checkpoints in a folder, ascending."""
    return sorted(ocp.utils.checkpoint_steps(folder))


def has_checkpoints(run_folder: epath.PathLike) -> bool:
    """Whether a run folder holds at least one complete checkpoint."""
    return bool(complete_steps(full_path(run_folder) / FOLDER))


def newest(folder: str) -> tuple[Checkpoints, int]:
    """Finds the newest checkpoint of a run folder, or the one that `folder` itself is.

    Raises:
      InputError: there is none.
    """
    path = full_path(folder)
    if path.name.isdigit() and path.parent.name == FOLDER and path.is_dir():
        return Checkpoints(str(path.parent.parent)), int(path.name)
    if has_checkpoints(path):
        found = Checkpoints(str(path))
        return found, found.steps()[-1]
    raise InputError(
        f"'{folder}' holds no checkpoint: give a run folder, or one of its checkpoints"
    )


def newest_path(folder: str) -> str:
    """Path of the checkpoint that `newest` finds, which stays the same when its run goes on.

    Raises:
      InputError: there is none.
    """
    checkpoints, step = newest(folder)
    path = epath.Path(folder)
    own = full_path(folder) == checkpoints.folder / str(step)
    return str(path if own else path / FOLDER / str(step))


def ema_item(decay: float) -> str:
    """Name of the item that holds an EMA."""
    return f"ema_{decay}"


def state_items(state: TrainState) -> dict[str, Any]:
    """The trees of a training state, or of its shapes or places, by the names they are saved as."""
    ema = {ema_item(decay): tree for decay, tree in state.ema.items()}
    return {"params": state.params, "optimizer": state.opt_state, **ema}


def _from_items(step: int, items: dict[str, Any], abstract: TrainState) -> TrainState:
    return TrainState(
        step=place(np.int32(step), abstract.step.sharding),
        params=items["params"],
        opt_state=items["optimizer"],
        ema={decay: items[ema_item(decay)] for decay in abstract.ema},
    )


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """What writes and reads trees.

    Nothing is compressed: float32 weights would shrink by 7%, and a save takes twice as long
    (docs/checkpoints.md).
    """
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(None, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(use_compression=False))
    registry.add(None, ocp.args.StandardRestore, ocp.StandardCheckpointHandler())
    return registry


class _SaveErrors:
    """Turns whatever a save raises into one line that names what is safe."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, Exception):
            folder = self._checkpoints.folder
            steps = self._checkpoints.steps()
            safe = f"{folder / str(steps[-1])} is safe" if steps else "none was saved before"
            reason = str(error).splitlines()[0] if str(error) else kind.__name__
            raise TrainingError(
                f"a checkpoint could not be saved under {folder} ({reason}); "
                f"{safe}: free some space and run the same command again"
            ) from error
