"""The text of a compiled program: its instructions, and how often each runs."""

import dataclasses
import re
from collections.abc import Iterator

_SIZES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_CALLS = re.compile(r"(?:calls|to_apply|branch_computations)=(\{[^}]*\}|%[\w.\-]+)")
# Their computations are applied to scalars.
_SCALAR_CALLS = {"reduce", "reduce-window", "scatter", "sort", "map", "select-and-scatter"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
      name: of its result.
      shape: of its result, as written.
      opcode: what it does.
      operands: names of what it takes.
      attributes: the rest of the line.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction within a program that runs.

    Attributes:
      instruction: the instruction.
      computation: name of the computation that it is in.
      owner: name of the computation around all fusions that it is in.
      times: how often it runs.
    """

    instruction: Instruction
    computation: str
    owner: str
    times: int

    @property
    def fused(self) -> bool:
        """Whether it is part of a fusion, and its results stay within."""
        return self.computation != self.owner


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a text by name, and the one that is called first."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    def runs(self) -> Iterator[Run]:
        """All instructions, with how often they run; loops of unknown length once."""
        yield from self._walk(self.entry, self.entry, 1)

    def unknown_loops(self) -> int:
        """Number of loops whose length the text does not show."""
        loops = (i for c in self.computations.values() for i in c if i.opcode == "while")
        return sum(self.trips(loop) is None for loop in loops)

    def trips(self, loop: Instruction) -> int | None:
        """How often a `while` runs, from its notes or its condition; None where neither says."""
        if found := re.search(r'known_trip_count":?\{"?n"?:"?(\d+)', loop.attributes):
            return int(found[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        bounds = []
        for name in self._with_called(condition[1]):
            for i in self.computations.get(name, ()):
                if i.opcode == "constant" and re.match(r"[su](8|16|32|64)\[\]", i.shape):
                    bounds.append(int(i.operands[0]))
        return bounds[0] if len(set(bounds)) == 1 and bounds[0] > 0 else None

    def _with_called(self, name: str) -> list[str]:
        inner = [c for i in self.computations.get(name, ()) for c in called(i)]
        return [name, *inner]

    def _walk(self, name: str, owner: str, times: int) -> Iterator[Run]:
        for i in self.computations.get(name, ()):
            yield Run(i, name, owner, times)
            if i.opcode == "while":
                body = re.search(r"body=%?([\w.\-]+)", i.attributes)[1]
                yield from self._walk(body, body, times * (self.trips(i) or 1))
            else:
                for inner in called(i):
                    fused = i.opcode in ("fusion", "custom-call") or name != owner
                    yield from self._walk(inner, owner if fused else inner, times)


def called(instruction: Instruction) -> list[str]:
    """Names of the computations that an instruction runs as often as itself."""
    if instruction.opcode in _SCALAR_CALLS or instruction.opcode.startswith(("all-", "reduce-")):
        return []
    found = _CALLS.findall(instruction.attributes)
    return [name for group in found for name in re.findall(r"%([\w.\-]+)", group)]


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, current, lines = "", None, []
    for line in text.splitlines():
        if line.endswith("{") and line.startswith(("%", "ENTRY")):
            current = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            entry, lines = (current if line.startswith("ENTRY") else entry), []
        elif line == "}" and current is not None:  # A kernel's own text has lines that start so.
            computations[current], current = tuple(lines), None
        elif current is not None and (found := _instruction(line)):
            lines.append(found)
    return Program(computations, entry)


def arrays(shape: str, on_chip: bool = True) -> list[int]:
    """Bytes of the arrays of a shape, in order; those kept in VMEM only with `on_chip`."""
    sizes = []
    for kind, dimensions, layout in _ARRAY.findall(shape):
        if on_chip or "S(1)" not in layout:
            count = 1
            for side in filter(None, dimensions.split(",")):
                count *= int(side)
            sizes.append(count * _size(kind))
    return sizes


def _size(kind: str) -> float:
    if kind in _SIZES:
        return _SIZES[kind]
    bits = re.match(r"[a-z]+(\d+)", kind)
    return int(bits[1]) / 8 if bits else 0


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*)", line)
    if not found:
        return None
    name, rest = found.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    head = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if not head:
        return None
    start = end + head.end() - 1
    stop = _closing(rest, start)
    inside = rest[start + 1 : stop]
    operands = re.findall(r"%([\w.\-]+)", inside) or [inside]
    return Instruction(name, rest[:end], head[1], tuple(operands), rest[stop + 1 :])


def _closing(text: str, start: int) -> int:
    """Place of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text) - 1
