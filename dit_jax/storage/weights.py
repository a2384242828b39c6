"""Bare weights, written as a conversion would."""

from typing import Any

import flax.linen as nn

from dit_jax import serialization
from dit_jax.checkpoint import Checkpoints, has_checkpoints
from dit_jax.errors import InputError
from dit_jax.parallel import hosts


def save_weights(folder: str, module: nn.Module, shape: tuple[int, ...], params: Any) -> None:
    """Writes a network's parameters for `dit_jax.weights.load_weights` and the converter.

    All processes call it, with the same arrays.

    Args:
      folder: folder to make.
      module: the network.
      shape: shape of one example of its input.
      params: its parameters.

    Raises:
      InputError: the folder has weights already.
      TrainingError: the disk refused.
    """
    refuse_weights(folder)
    checkpoints = Checkpoints(folder)
    metadata = {"module": serialization.to_json(module), "shape": list(shape)}
    checkpoints.save_items({"params": params}, metadata)
    checkpoints.close()


def refuse_weights(folder: str) -> None:
    """Raises InputError, on all processes, where a folder has weights already."""
    if hosts.on_main(lambda: has_checkpoints(folder)):
        raise InputError(f"'{folder}' holds weights already: choose another folder")
