"""A step's time from what it computes and moves, and from what chips are said to do."""

import dataclasses

from dit_jax.planning.topology import Slice
from dit_jax.planning.traffic import Collective

# Shares of the published peaks that are taken to be reached. The compiler's own schedule gives a
# matmul of 8192 cubed 88 % on v5e, 90 % on v5p and 70 % on v6e; the others are round guesses.
# None of it is calibrated on real chips.
MATMUL, MEMORY, LINKS = 0.85, 0.8, 0.8


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step, by what limits it.

    Attributes:
      compute: matmuls alone.
      memory: traffic with HBM alone.
      wire: traffic between chips alone.
    """

    compute: float
    memory: float
    wire: float

    @property
    def fastest(self) -> float:
        """All three at the same time."""
        return max(self.compute, self.memory, self.wire)

    @property
    def slowest(self) -> float:
        """One after another."""
        return self.compute + self.memory + self.wire

    @property
    def estimate(self) -> float:
        """Half way between the two, which are its error bar."""
        return (self.fastest + self.slowest) / 2

    @property
    def bound(self) -> str:
        """What limits the step most."""
        parts = {"compute": self.compute, "HBM": self.memory, "interconnect": self.wire}
        return max(parts, key=parts.get)


def roofline(
    where: Slice, flops: float, memory_bytes: float, exchanged: list[Collective]
) -> Roofline:
    """Divides work by published peaks.

    Args:
      where: the slice, of chips that are known.
      flops: of one device, recomputation included.
      memory_bytes: between one device and its HBM.
      exchanged: what devices send each other.
    """
    chip = where.chip
    return Roofline(
        flops / (chip.flops * MATMUL),
        memory_bytes / (chip.hbm_bandwidth * MEMORY),
        sum(wire_seconds(where, c) for c in exchanged),
    )


def wire_seconds(where: Slice, collective: Collective) -> float:
    """Time of exchanges that use all links along the sides of the slice that they span.

    A permute uses one link; an all-to-all goes over a quarter of a ring on average. What devices of
    several slices exchange, those of one slice do first among themselves, so that each has its part
    to send over the network.
    """
    group = list(collective.group)
    links, hops = where.links(group), 1.0
    if collective.kind == "collective-permute":
        links = 1
    elif collective.kind.endswith("all-to-all"):
        hops = max(1.0, where.longest(group) / 4)
    slices = where.across(group)
    own = len(group) // slices
    seconds = collective.bytes * hops / (links * where.chip.link * LINKS) if own > 1 else 0.0
    if slices > 1:
        seconds += collective.bytes / own / (where.chip.network * LINKS)
    return seconds


def mfu(where: Slice, model_flops: float, devices: int, seconds: float) -> float:
    """Share of the peak that a model's own FLOPs reach, recomputation not counted."""
    return model_flops / (devices * where.chip.flops * seconds)
