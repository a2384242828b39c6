"""A checkpoint written anew, so that devices of another mesh read whole parts of its files.

Any mesh can restore any checkpoint: Orbax reads what each device needs. But what 256 devices wrote
lies in 256 small parts an array, and what one device wrote in few large ones, which each of many
would read whole to take a little.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import NamedSharding
from tensorstore import TensorStore

from dit_jax import serialization
from dit_jax.checkpoint import Checkpoints, ema_item, newest, state_items
from dit_jax.errors import DitJaxError, InputError, TrainingError
from dit_jax.experiment import Experiment
from dit_jax.interop.engine import by_path
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.paths import full_path
from dit_jax.progress import track
from dit_jax.storage.chunks import Chunking, choose_chunks
from dit_jax.storage.contents import Stored, StoredArray, read_contents
from dit_jax.storage.copying import copy_parts
from dit_jax.training.folder import RECORD

# Item -> path -> how that array is written.
Plan = dict[str, dict[str, Chunking]]


def reshard(
    folder: str, out: str, parallel: Parallel | None = None, items: Sequence[str] = ()
) -> list[str]:
    """Writes a checkpoint anew for the devices of another mesh, which need not be there.

    Values stay what they are, bit for bit. Memory holds a few parts, however large arrays are. The
    source is not touched, and a failure leaves nothing behind.

    Args:
      folder: a run folder (its newest checkpoint is taken), or one of its checkpoints.
      out: run folder to make, with one checkpoint of the same step.
      parallel: the mesh that will read it; one device by default.
      items: what to keep, such as `params` and `ema_0.9999`; all by default.

    Returns:
      What was made, a line each.

    Raises:
      InputError: no such checkpoint or item, a size does not divide over the mesh, or `out` is
        there already.
      TrainingError: a disk refused.
    """
    target = full_path(out)
    if target.exists():
        raise InputError(f"'{out}' is there already: choose another folder")
    stored = read_contents(folder)
    kept = _choose(stored, items)
    mesh = (parallel or Parallel()).abstract()
    plan = _plan(stored, kept, Layout(mesh))
    scratch = target.parent / f"{target.name}.incomplete"
    scratch.rmtree(missing_ok=True)
    try:
        _write(stored, str(scratch), plan, _metadata(stored, kept, dict(mesh.shape)))
        if "optimizer" in kept and kept == list(stored.items):
            _record(stored, scratch)
        scratch.rename(target)
    except DitJaxError:
        raise
    except Exception as error:  # Orbax and TensorStore raise whatever they met.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"'{out}' was not made, '{folder}' is untouched: {reason}") from error
    finally:
        scratch.rmtree(missing_ok=True)
    return _report(stored, plan)


def _choose(stored: Stored, items: Sequence[str]) -> list[str]:
    """The items to keep, in the order they have there."""
    for item in items:
        if item not in stored.items:
            raise InputError(f"'{stored.path}' has no '{item}': it has {', '.join(stored.items)}")
    return [item for item in stored.items if not items or item in items]


def _plan(stored: Stored, kept: Iterable[str], layout: Layout) -> Plan:
    places = _shardings(stored, layout)

    def chunking(item: str, path: str, array: StoredArray) -> Chunking:
        place = places.get(item, {}).get(path, layout.replicated)
        shard = place.shard_shape(array.shape)
        return choose_chunks(array.shape, array.dtype.itemsize, array.chunk, shard)

    return {
        item: {
            path: chunking(item, path, array) for path, array in stored.items[item].arrays.items()
        }
        for item in kept
    }


def _shardings(stored: Stored, layout: Layout) -> dict[str, dict[str, NamedSharding]]:
    """Where a run's state would lie, by item and path; nothing is known of bare weights."""
    if "experiment" not in stored.metadata:
        return {}
    experiment = serialization.from_json(stored.metadata["experiment"])
    abstract = jax.eval_shape(experiment.fresh_state)
    shardings = experiment.state_shardings(layout, abstract)
    return {item: by_path(tree) for item, tree in state_items(shardings).items()}


def _metadata(stored: Stored, kept: Iterable[str], mesh: dict[str, int]) -> dict[str, Any]:
    """What is saved beside the arrays, without what it says of items that are left out."""
    changed = {"resharded": {"from": stored.path, "mesh": mesh}}
    if "experiment" in stored.metadata:
        experiment: Experiment = serialization.from_json(stored.metadata["experiment"])
        training = experiment.training
        averages = tuple(decay for decay in training.ema if ema_item(decay) in kept)
        if averages != training.ema:
            training = dataclasses.replace(training, ema=averages)
            experiment = dataclasses.replace(experiment, training=training)
            changed["experiment"] = serialization.to_json(experiment)
    left_out = stored.items.keys() - set(kept)
    there = {name: value for name, value in stored.metadata.items() if name not in left_out}
    return there | changed


def _write(stored: Stored, out: str, plan: Plan, metadata: dict[str, Any]) -> None:
    source, step = newest(stored.path)
    target = Checkpoints(out)
    target.reserve({item: stored.items[item].tree for item in plan}, metadata, step)

    everything = [
        (item, path, stored.items[item].arrays[path], chunking)
        for item, chunkings in plan.items()
        for path, chunking in chunkings.items()
    ]

    def parts() -> Iterator[tuple[TensorStore, TensorStore]]:
        for item, path, array, chunking in track(everything, "resharding"):
            old = source.array(step, item, path)
            new = target.array(step, item, path, array, chunking.chunk)
            for block in chunking.blocks(array.shape):
                yield old[block], new[block]

    copy_parts(parts())
    target.close()


def _record(stored: Stored, folder: epath.Path) -> None:
    """Lets a run that resumes here be checked against the configuration it was trained with."""
    text = json.dumps(stored.metadata["experiment"], indent=2)
    (folder / RECORD).write_text(text + "\n")


def _report(stored: Stored, plan: Plan) -> list[str]:
    lines = [f"{stored.path}, step {stored.step}"]
    for item, chunkings in plan.items():
        arrays = stored.items[item].arrays
        before = sum(array.chunks for array in arrays.values())
        after = sum(
            dataclasses.replace(array, chunk=chunkings[path].chunk).chunks
            for path, array in arrays.items()
        )
        size = stored.items[item].bytes
        lines.append(f"{item}: {len(arrays)} arrays, {size:,} bytes, in {before} parts -> {after}")
    return lines
