"""Cycles that a program would take on a TPU, estimated from its compiler's own schedule.

No TPU is needed: libtpu compiles ahead of time, and dumps the instruction bundles of each operation
and, for most operations of XLA, the cycles that it expects. A kernel's bundles are counted as often
as its loops run. What is left out: waiting for memory, and regions that a loop's turn may skip,
unless they hold most of it. Ratios of such figures are good to perhaps 25 to 30 %.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
_PASS = "packed-bundles-post-ra"
# Kernels whose operation in JAX is not in the program's text.
_BACKWARD = re.compile(r"gradient|_dq_|_dkv_")
# The compiler marks what it cannot estimate by numbers near 2^63.
_SENTINEL = 1 << 40


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a compiled program.

    Attributes:
      name: in the program's text.
      source: the operations of JAX that it comes from.
      cycles: what it takes on its core, or cores.
      kernel: whether it is a Pallas kernel.
    """

    name: str
    source: str
    cycles: float
    kernel: bool

    @property
    def backward(self) -> bool:
        """Whether it belongs to the backward pass."""
        return "transpose(" in self.source or bool(_BACKWARD.search(self.name))


class Compiler:
    """The TPU's compiler; to be made before JAX is imported, once a process."""

    def __init__(self):
        """Sets what the compiler reads from the environment."""
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="tpu_schedule_"))
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # What is cached is not dumped.
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": "v5p-8",
            "LIBTPU_INIT_ARGS": (
                f"--xla_jf_dump_to={self._folder} --xla_jf_dump_llo_text=true "
                f"--xla_jf_dump_llo_pass_label_regex={_PASS}"
            ),
        }

    def close(self) -> None:
        """Removes what was dumped."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def compile(self, function: Callable, chip: str, *args: Any) -> Any:
        """Compiles a function of `jax.ShapeDtypeStruct`s for one device of a chip.

        Returns:
          The compiled program, for its text and its memory analysis.
        """
        import jax
        import numpy as np
        from jax.experimental import topologies

        topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
        mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("device",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        args = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in args]
        for path in self._folder.iterdir():
            path.unlink()
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",)).compile()

    def operations(
        self, compiled: Any, turns: Callable[[str], float] = lambda name: 1.0
    ) -> list[Operation]:
        """The operations of the program that was compiled last.

        Args:
          compiled: what `compile` returned.
          turns: how often the inner loop of a kernel of such a name runs, where its bound is not
            known to the compiler.
        """
        computations = _computations(compiled.as_text())
        return list(self._walk(computations, "ENTRY", 1.0, turns))

    def _walk(self, computations, name, times, turns):
        for line in computations[name]:
            found = re.match(r"(?:ROOT )?%?([\w.\-]+) = .*?\s([\w\-]+)\(", line)
            if not found:
                continue
            operation, kind = found.groups()
            if kind == "while":
                body = re.search(r"body=%?([\w.\-]+)", line)[1]
                count = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                yield from self._walk(
                    computations, body, times * (int(count[1]) if count else 1), turns
                )
                continue
            source = re.search(r'op_name="([^"]*)"', line)
            source, kernel = source[1] if source else "", "tpu_custom_call" in line
            cycles = None
            if estimate := re.search(r'estimated_cycles":"(\d+)"', line):
                cycles = int(estimate[1])
            if cycles is None or cycles > _SENTINEL:
                cycles = self._bundles(operation, turns(operation))
            if cycles:
                yield Operation(operation, source, times * cycles, kernel)

    def _bundles(self, operation: str, turns: float) -> float:
        paths = [
            path
            for path in self._folder.glob(f"*-{operation}-*-{_PASS}.txt")
            if "schedule-analysis" not in path.name
        ]
        return _count(paths[0].read_text(), turns) if paths else 0.0


def _computations(text: str) -> dict[str, list[str]]:
    """Lines of each computation of a program's text."""
    found, current = {}, None
    for line in text.splitlines():
        if line.endswith("{") and line.startswith(("%", "ENTRY")):
            current = found.setdefault(line.split()[0].lstrip("%"), [])
        elif line == "}":
            current = None
        elif current is not None:
            current.append(line.strip())
    return found


def _count(text: str, turns: float) -> float:
    """Bundles that are run: those of loops as often as they run."""
    lines = [(int(m[1], 16), m[0]) for m in re.finditer(r"^ *(0x[0-9a-f]+|0) .*$", text, re.M)]
    branches = [
        (address, int(m[1]))
        for address, line in lines
        for m in re.finditer(r"sbr\.rel (?:\([^)]*\) )?target bundleno = (\d+)", line)
    ]
    bounds = {
        address: int(m[1])
        for address, line in lines
        if (m := re.search(r"(\d+) /\* loop exit test", line))
    }
    loops = sorted((target, end) for end, target in branches if target <= end)
    skipped = [(start, target) for start, target in branches if target > start]

    def run(start: int, end: int, loops: list) -> float:
        """Bundles from `start` to `end`, of which `loops` lie within."""
        outer = [
            a for a in loops if not any(b != a and b[0] <= a[0] and a[1] <= b[1] for b in loops)
        ]
        total = float(end - start)
        for first, last in outer:
            inner = [b for b in loops if b != (first, last) and first <= b[0] and b[1] <= last]
            once = run(first, last, inner)
            bound = [
                n
                for address, n in bounds.items()
                if first <= address <= last and not any(a <= address <= b for a, b in inner)
            ]
            total += (bound[0] if bound else turns) * once - (last - first)
        for first, last in skipped:
            inside = start < first and last < end
            holds = any(first <= a and b <= last for a, b in loops)
            within = any(a <= first and last <= b for a, b in loops)
            if inside and not holds and not within and 2 * (last - first) < end - start:
                total -= last - first
        return total

    return run(0, lines[-1][0] + 1, loops)
