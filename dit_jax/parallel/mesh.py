"""The device mesh of a run."""

import dataclasses
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from dit_jax.errors import InputError

AXES = ("data", "fsdp", "expert", "sequence", "tensor")


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How many devices share which work; one device is a mesh of one.

    Over several TPU slices, replicas lie on slices of their own if their number allows it, and
    otherwise parts of one copy do: what crosses the network between slices is one sum of gradients
    a step, or a gather of each layer.

    Attributes:
      data: replicas of the parameters, each with its share of the batch; they divide optimizer
        state and EMA. -1, here or in one other place, takes all devices that remain.
      fsdp: devices that share one copy of the parameters, optimizer state and EMA, and also
        divide the batch.
      expert: devices that share the experts of an MoE layer, and also divide the batch.
      sequence: devices that share the tokens of the same samples, and the heads in attention.
      tensor: devices that share every head's and every hidden unit's work on the same samples.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    sequence: int = 1
    tensor: int = 1

    def mesh(self, devices: list[jax.Device] | None = None) -> Mesh:
        """Builds the mesh over `devices` (all of them by default).

        Axes lie along the links of a TPU slice, the last one closest together.

        Raises:
          InputError: the axes do not multiply to the number of devices, or not to that of slices.
        """
        devices = jax.devices() if devices is None else list(devices)
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
        return Mesh(arrange(devices, shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def abstract(self) -> AbstractMesh:
        """The mesh's shape without devices; `data` is 1 where it would take all that remain.

        Raises:
          InputError: an axis is shorter than one device.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        if sizes["data"] == -1:
            sizes["data"] = 1
        for axis, size in sizes.items():
            if size < 1:
                raise InputError(f"--parallel.{axis} {size}: it must be at least 1")
        return AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


# What most runs want; `--parallel NAME` on the command line. Four chips are a host's.
RECIPES = {
    "ddp": Parallel(),
    "fsdp": Parallel(data=1, fsdp=-1),
    "fsdp+ep": Parallel(data=1, fsdp=-1, expert=4),
    "fsdp+sp": Parallel(data=1, fsdp=-1, sequence=4),
    "fsdp+tp": Parallel(data=1, fsdp=-1, tensor=4),
}


def arrange(devices: list[jax.Device], shape: list[int]) -> np.ndarray:
    """Returns the devices in the order of a mesh of this shape.

    Raises:
      InputError: neither data nor fsdp, the first two axes, divides over the slices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    for number in (0, 1):  # data, fsdp
        if shape[number] % slices == 0:
            across = [slices if i == number else 1 for i in range(len(shape))]
            within = [size // n for size, n in zip(shape, across, strict=True)]
            return mesh_utils.create_hybrid_device_mesh(
                within, across, devices, allow_split_physical_axes=True
            )
    raise InputError(
        f"data={shape[0]} and fsdp={shape[1]} do not divide over {slices} slices: make "
        f"--parallel.data or --parallel.fsdp a multiple of {slices}"
    )
