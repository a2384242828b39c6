"""TPU slices that need not be there: their chips' published numbers, and their devices."""

import dataclasses
import importlib.util
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dit_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a TPU's documentation says of one device of JAX (tpu7x has two a chip).

    Attributes:
      flops: dense bf16 FLOP/s.
      hbm: bytes that a program may have, as the compiler says when one needs more.
      hbm_bandwidth: bytes/s.
      link: bytes/s of one link between chips in one direction.
      network: bytes/s between slices in one direction.
      torus: sides that close to rings; the sides of smaller slices are lines.
      source: the page that states the numbers.
    """

    flops: float
    hbm: int
    hbm_bandwidth: float
    link: float
    network: float
    torus: int
    source: str


# `link`: the bidirectional bandwidth of a chip, over 4 (2D) or 6 (3D) links and two directions; for
# tpu7x the two devices of a chip share its links. `network`: that of a pod over its chips; for
# tpu7x no number was found, and a chip is taken to have v6e's.
_DOCS = "cloud.google.com/tpu/docs"
CHIPS = {
    "v5e": Chip(197e12, int(15.75 * GIB), 819e9, 50e9, 3.1e9, 16, f"{_DOCS}/v5e"),
    "v5p": Chip(459e12, int(95.74 * GIB), 2765e9, 100e9, 6.2e9, 4, f"{_DOCS}/v5p"),
    "v6e": Chip(918e12, int(31.25 * GIB), 1638e9, 100e9, 12.5e9, 16, f"{_DOCS}/v6e"),
    "tpu7x": Chip(1153.5e12, int(94.75 * GIB), 3690e9, 50e9, 6.2e9, 4, f"{_DOCS}/tpu7x"),
}

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices and how they are joined.

    Attributes:
      name: such as `v5p:4x4x4`.
      chip: what one device can do; None where it is not in the table.
      devices: in any order.
      sides: chips along each side of a slice.
      slices: number of slices; the network joins them.
    """

    name: str
    chip: Chip | None
    devices: tuple[Any, ...]
    sides: tuple[int, ...]
    slices: int = 1

    def across(self, positions: list[int]) -> int:
        """Number of slices that a group of devices, given by their numbers, lies on."""
        return len({getattr(self.devices[i], "slice_index", 0) for i in positions})

    def links(self, positions: list[int]) -> int:
        """Links, one way, that a chip has towards those of a group that share its slice."""
        coords = np.array([self.devices[i].coords for i in positions])
        spanned = [d for d, side in enumerate(self.sides) if len(set(coords[:, d])) > 1]
        return sum(2 if self._closes(self.sides[d]) else 1 for d in spanned) or 1

    def along(self, mesh: Mesh) -> "Slice":
        """The same devices in the order of a mesh, which is how compiled programs number them."""
        return dataclasses.replace(self, devices=tuple(mesh.devices.flat))

    def longest(self, positions: list[int]) -> int:
        """Chips of a group of devices along its longest side."""
        coords = np.array([self.devices[i].coords for i in positions])
        return max(len(set(column)) for column in coords.T)

    def _closes(self, side: int) -> bool:
        if self.chip is None or side < 4:
            return False
        if self.chip.torus == 4:  # Cubes of 4 are joined by switches, in all directions or none.
            return all(s % 4 == 0 for s in self.sides)
        return side % self.chip.torus == 0


def find_slice(name: str, slices: int = 1) -> Slice:
    """Asks libtpu for the devices of slices such as `v5p:4x4x4`; needs no TPU.

    Raises:
      InputError: libtpu is missing, or there is no such slice.
    """
    if slices < 1:
        raise InputError(f"--slices is {slices}: it must be at least 1")
    generation, _, shape = name.partition(":")
    if generation not in CHIPS or not all(part.isdigit() for part in shape.split("x")):
        raise InputError(
            f"no topology '{name}': write CHIP:SIDES, such as v5e:4x4, v5p:4x4x4, v6e:2x4 or "
            f"tpu7x:4x4x4"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("planning for TPUs needs their compiler: pip install libtpu")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, num_slices=slices
        ).devices
    except Exception as error:  # What libtpu raises has no class of its own.
        reason = str(error).splitlines()[0]
        raise InputError(f"libtpu has no topology '{name}': {reason}") from error
    sides = tuple(int(part) for part in shape.split("x"))
    name = f"{slices} x {name}" if slices > 1 else name
    sides = sides + (1,) * (3 - len(sides))
    return Slice(name, CHIPS[generation], tuple(found), sides, slices)


def local_slice() -> Slice:
    """The devices at hand, of whatever kind."""
    devices = jax.devices()
    return Slice(f"{len(devices)} x {devices[0].device_kind}", None, tuple(devices), ())
