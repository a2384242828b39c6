"""Ahead-of-time compilation of a run's step, and what the compiler says of its memory."""

import dataclasses
import re
import resource
import sys
import time

import jax

from dit_jax.errors import TrainingError
from dit_jax.planning.topology import GIB
from dit_jax.training.program import Program

_UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT])"
_NEEDED = (
    rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)",
    rf"[Uu]sed {_SIZE} of {_SIZE} hbm",
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device, as the compiler counts them.

    Attributes:
      arguments: state and batch.
      outputs: results that do not take an argument's place.
      temporaries: activations, gradients, and all else that lives within the step.
      program: the code.
    """

    arguments: int
    outputs: int
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.arguments + self.outputs + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
      text: the program.
      memory: what it takes.
      seconds: that tracing and compiling took.
      ram: bytes that this process has had at most.
    """

    text: str
    memory: Memory
    seconds: float
    ram: int


class DoesNotFit(TrainingError):
    """The compiler gave up: `needed` bytes for the step's temporaries, `available` in all."""

    def __init__(self, needed: int, available: int):
        super().__init__(
            f"the step needs {needed / GIB:.2f} GiB of {available / GIB:.2f} GiB of HBM"
        )
        self.needed, self.available = needed, available


def compile_step(program: Program) -> Compiled:
    """Compiles a run's step for the devices of its mesh, which need not be there.

    Raises:
      DoesNotFit: the compiler finds no way to fit it into a device's memory.
    """
    start = time.perf_counter()
    platform = program.layout.mesh.devices.flat[0].platform
    lowered = program.step().trace(*program.arguments()).lower(lowering_platforms=(platform,))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise read_exhausted(str(error)) or error from error
    found = compiled.memory_analysis()
    memory = Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )
    return Compiled(compiled.as_text(), memory, time.perf_counter() - start, peak_ram())


def read_exhausted(message: str) -> DoesNotFit | None:
    """What a compiler's RESOURCE_EXHAUSTED says of HBM; None where it is about something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern in _NEEDED:
        if found := re.search(pattern, message):
            needed, unit, available, other = found.groups()
            return DoesNotFit(_bytes(needed, unit), _bytes(available, other))
    return None


def peak_ram() -> int:
    """Bytes of memory that this process has had at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])
