"""Bytes that a compiled program moves between devices."""

import dataclasses
import re

from dit_jax.planning.groups import axes_of, read_groups
from dit_jax.planning.hlo import Program, Run, arrays

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
    *("ragged-all-to-all", "collective-permute"),
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange along the same axes.

    Attributes:
      kind: as XLA calls it.
      axes: mesh axes whose devices exchange.
      times: exchanges a step.
      bytes: what a device sends in all of them.
      group: one group of devices that exchange.
    """

    kind: str
    axes: tuple[str, ...]
    times: int
    bytes: float
    group: tuple[int, ...]


def collectives(program: Program, mesh: dict[str, int], devices: int) -> list[Collective]:
    """Sums up a program's exchanges by kind and axes, loops counted, largest first.

    A gather that the compiler spreads over several fusions counts once.
    """
    total: dict[tuple, Collective] = {}
    seen = set()
    for run in program.runs():
        i = run.instruction
        kind = i.opcode.removesuffix("-start")
        # Channels of what shard_map sends are not told apart; only gathers are spread.
        channel = re.search(r"channel_id=(\d+)", i.attributes) if kind == "all-gather" else None
        mark = (kind, channel[1] if channel else i.name, run.owner)
        if kind not in KINDS or mark in seen:
            continue
        seen.add(mark)
        groups = read_groups(i.attributes, devices)
        axes, size = axes_of(groups, mesh), len(groups[0]) if groups else devices
        if size == 1:
            continue
        if "all-reduce-scatter" in run.computation:
            kind = "reduce-scatter"
        group = tuple(groups[0] if groups else range(devices))
        old = total.get((kind, axes), Collective(kind, axes, 0, 0.0, group))
        sent = _sent(run, kind, size, program) * run.times
        times, sent = old.times + run.times, old.bytes + sent
        total[kind, axes] = dataclasses.replace(old, times=times, bytes=sent)
    return sorted(total.values(), key=lambda c: -c.bytes)


def _sent(run: Run, kind: str, size: int, program: Program) -> float:
    """Bytes that a device sends, where rings are used."""
    i = run.instruction
    result = arrays(i.shape)
    if i.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        result = result[1:2]  # Of the operand, the result, and marks.
    if kind == "ragged-all-to-all":
        # One of the two is room for whatever may come, the other what comes where loads are even.
        shapes = {j.name: j.shape for j in program.computations[run.computation]}
        result = min(result, arrays(shapes.get(i.operands[0], i.shape)))
    share = (size - 1) / size
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
    if kind == "reduce-scatter" and i.opcode.startswith("reduce-scatter"):
        factor = size - 1  # The result is a part.
    return sum(result) * factor
