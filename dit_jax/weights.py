"""Parameters of a frozen network, from a folder that the converter made."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from dit_jax.errors import InputError


def load_weights(folder: str, abstract: Any) -> Any:
    """Reads parameters as float32 arrays on one device.

    Args:
      folder: what `python -m dit_jax convert from-torch` made.
      abstract: shapes of the parameters.

    Raises:
      InputError: there are none, or they are of another model.
    """
    path = pathlib.Path(folder).expanduser().resolve() / "checkpoints"
    steps = ocp.CheckpointManager(path).all_steps() if path.is_dir() else []
    if not steps:
        raise InputError(
            f"'{folder}' holds no converted weights: make it with `python -m dit_jax convert "
            f"from-torch FILE {folder}`"
        )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), abstract
    )
    item = ocp.args.Composite(params=ocp.args.StandardRestore(wanted))
    try:
        return ocp.CheckpointManager(path).restore(max(steps), args=item)["params"]
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the weights in '{folder}' are of another model: {reason}") from error
