"""The device mesh of a run."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from dit_jax.errors import InputError

AXES = ("data", "fsdp", "expert", "tensor")


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How many devices share which work; one device is a mesh of one.

    Attributes:
      data: replicas of the parameters, each with its share of the batch; -1 takes all devices that
        remain.
      fsdp: devices that share one copy of the parameters, optimizer state and EMA, and also
        divide the batch.
      expert: devices that share the experts of an MoE layer, and also divide the batch.
      tensor: devices that share every head's and every hidden unit's work on the same samples.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1

    def mesh(self, devices: list[jax.Device] | None = None) -> Mesh:
        """Builds the mesh over `devices` (all of them by default).

        Raises:
          InputError: the axes do not multiply to the number of devices.
        """
        devices = jax.devices() if devices is None else devices
        shape = [getattr(self, axis) for axis in AXES]
        if -1 in shape:
            rest = math.prod(size for size in shape if size != -1)
            shape[shape.index(-1)] = len(devices) // rest if rest > 0 else 0
        if min(shape) < 1 or math.prod(shape) != len(devices):
            sizes = " x ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)
            raise InputError(
                f"a mesh of {sizes} does not cover {len(devices)} devices: choose sizes whose "
                f"product is {len(devices)}, or -1 for one of them"
            )
        # Auto axes: XLA propagates shardings. Explicit ones fail at the first patchify reshape.
        grid = np.asarray(devices).reshape(shape)
        return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
