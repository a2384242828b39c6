"""Bytes that a compiled program moves between a device and its memory."""

from dit_jax.planning.hlo import Instruction, Program, Run, arrays, called
from dit_jax.planning.traffic import KINDS

# They name what is there, or wait for it.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "iota", "after-all", "opt-barrier", "partition-id", "replica-id"),
}
_SLICES = {"dynamic-slice", "slice", "gather"}


def memory_bytes(program: Program) -> float:
    """Bytes that a device reads from and writes to its HBM in a step.

    Each fusion reads its operands and writes its results once; what the compiler keeps in VMEM is
    free, and of an operand that is only sliced the slices count.
    """
    counter = _Counter(program)
    return sum(run.times * counter.touched(run) for run in program.runs())


class _Counter:
    def __init__(self, program: Program):
        self._lines = program.computations
        self._by_name = {
            name: {i.name: i for i in lines} for name, lines in program.computations.items()
        }

    def touched(self, run: Run) -> float:
        i = run.instruction
        if run.fused or i.opcode in _FREE or i.opcode.endswith("-done"):
            return 0.0
        if i.opcode.removesuffix("-start") in KINDS or '"AllocateBuffer"' in i.attributes:
            return 0.0
        written = sum(arrays(i.shape, on_chip=False))
        if i.opcode.endswith("-start"):  # A copy: of its result, its operand, and marks.
            return written
        known = self._by_name[run.computation]
        operands = [self._size(known.get(name)) for name in i.operands]
        if i.opcode == "fusion":
            inner = called(i)[0]
            operands = [self._read(inner, n, size) for n, size in enumerate(operands)]
            written = min(written, self._written(inner, self._lines[inner][-1]))
        elif i.opcode in _SLICES:
            operands = [written]
        elif i.opcode == "dynamic-update-slice":
            written, operands = operands[1], operands[1:2]
        return written + sum(operands)

    def _size(self, i: Instruction | None) -> float:
        return sum(arrays(i.shape, on_chip=False)) if i else 0.0

    def _read(self, name: str, number: int, size: float) -> float:
        """What a fusion reads of its operand: of one that is only sliced, the slices."""
        if not size:
            return 0.0
        lines, read = self._lines[name], 0.0
        aliases = {
            i.name for i in lines if i.opcode == "parameter" and i.operands == (str(number),)
        }
        for i in lines:
            used = [n for n, operand in enumerate(i.operands) if operand in aliases]
            if not used or i.opcode == "tuple":
                continue
            if i.opcode == "bitcast":
                aliases.add(i.name)
            elif i.opcode == "fusion":
                read += sum(self._read(called(i)[0], n, size) for n in used)
            elif i.opcode in _SLICES and used == [0]:
                read += sum(arrays(i.shape))
            elif not (i.opcode == "dynamic-update-slice" and used == [0]):
                return size
        return min(read, size)

    def _written(self, name: str, i: Instruction) -> float:
        """What a fusion writes: where it updates a slice in place, the slice."""
        known = self._by_name[name]
        if i.opcode == "tuple":
            return sum(self._written(name, known[n]) for n in i.operands if n in known)
        if i.opcode == "bitcast" and i.operands[0] in known:
            return self._written(name, known[i.operands[0]])
        if i.opcode == "fusion":
            inner = called(i)[0]
            return self._written(inner, self._lines[inner][-1])
        if i.opcode == "dynamic-update-slice" and i.operands[1] in known:
            return sum(arrays(known[i.operands[1]].shape))
        return self._size(i)
