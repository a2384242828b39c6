"""Parameters of a frozen network, from a folder that a conversion or a run made."""

import functools
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from dit_jax.errors import InputError
from dit_jax.paths import full_path


@functools.lru_cache(maxsize=4)
def load_module(
    folder: str, module: nn.Module, shape: tuple[int, ...], part: str | None = None
) -> Any:
    """Reads a module's parameters, as `load_weights` does.

    Args:
      folder: where they are.
      module: whose they are.
      shape: shape of an example of its input, without a batch; any that it takes.
      part: as for `load_weights`.

    Raises:
      InputError: there are none, or they are of another model.
    """
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    abstract = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return load_weights(folder, abstract, part)


def load_weights(folder: str, abstract: Any, part: str | None = None) -> Any:
    """Reads parameters as float32 arrays on one device.

    Args:
      folder: what `python -m dit_jax convert from-torch` made, or a run, whose first average is
        taken.
      abstract: shapes of the parameters, and what else the folder has is left there; None for all
        that it has, whatever its shapes.
      part: the subtree that they are, where the folder holds a network of several parts; a folder
        that has no such subtree holds the part alone.

    Raises:
      InputError: there are none, or they are of another model.
    """
    path = full_path(folder) / "checkpoints"
    steps = ocp.utils.checkpoint_steps(path) if path.is_dir() else []
    if not steps:
        raise InputError(
            f"'{folder}' holds no weights: give a run, or what `python -m dit_jax convert "
            f"from-torch FILE {folder}` makes"
        )
    item = _newest_item(path / str(max(steps)))
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(item).tree
    nested = part is not None and part in tree
    there = tree[part] if nested else tree
    if abstract is not None:
        _check(folder, abstract, there)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=device),
        there if abstract is None else abstract,
    )
    wanted = {part: wanted} if nested else wanted
    args = ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    found = handler.restore(item, args=args)
    return found[part] if nested else found


def _newest_item(step: epath.Path) -> epath.Path:
    """The first average of a run's checkpoint, or its parameters where it has none."""
    record = json.loads((step / "metadata" / "metadata").read_text())
    fields = record.get("experiment", {}).get("fields", {})
    decays = fields["training"]["fields"].get("ema", ()) if "training" in fields else ()
    return step / (f"ema_{decays[0]}" if decays else "params")


def _check(folder: str, wanted: Any, found: Any) -> None:
    """Compares names and shapes with those of the files."""
    there = {_name(path): tuple(leaf.shape) for path, leaf in _leaves(found)}
    for path, leaf in _leaves(wanted):
        name = _name(path)
        if there.get(name) != leaf.shape:
            has = f"has shape {there[name]}" if name in there else "is not there"
            raise InputError(
                f"the weights in '{folder}' are of another model: '{name}' {has}, and it should "
                f"have shape {leaf.shape}"
            )


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
