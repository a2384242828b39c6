"""A plan: everything that is known of a run before it is paid for."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from dit_jax.experiment import Experiment
from dit_jax.flops import count_flops
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.planning import hlo
from dit_jax.planning.compile import Compiled, DoesNotFit, compile_step
from dit_jax.planning.memory_traffic import memory_bytes
from dit_jax.planning.roofline import Roofline, mfu, roofline
from dit_jax.planning.topology import Slice
from dit_jax.planning.traffic import Collective, collectives
from dit_jax.planning.verdict import Verdict, judge
from dit_jax.training.program import Program, make_program

Compiler = Callable[[Program], Compiled]


@dataclasses.dataclass(frozen=True)
class State:
    """Bytes of the training state on one device."""

    parameters: int
    optimizer: int
    ema: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.optimizer + self.ema


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of a step on all devices, loops counted.

    Attributes:
      model: of the forward and backward pass, nothing recomputed.
      step: of all that is computed.
    """

    model: int
    step: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a run.

    Attributes:
      where: the slice's name.
      devices: number of devices.
      mesh: sizes of the mesh's axes.
      remat: what the model recomputes, where it has a choice.
      batch_size: images a step.
      accumulation: parts of a batch.
      parameters: number of parameters.
      state: bytes of a device.
      work: FLOPs.
      compiled: what the compiler made, without its text; None where it gave up.
      exchanged: what devices send each other.
      memory_bytes: between a device and its HBM.
      unknown_loops: loops that were counted once, as their length is not to be seen.
      times: the roofline; None for chips that are not in the table.
      mfu: share of the peak, at the estimated time.
      verdict: whether it fits; None for devices whose memory is not known.
    """

    where: str
    devices: int
    mesh: dict[str, int]
    remat: str | None
    batch_size: int
    accumulation: int
    parameters: int
    state: State
    work: Work
    compiled: Compiled | None
    exchanged: tuple[Collective, ...]
    memory_bytes: float
    unknown_loops: int
    times: Roofline | None
    mfu: float | None
    verdict: Verdict | None


def make_plan(experiment: Experiment, where: Slice, compiler: Compiler = compile_step) -> Plan:
    """Compiles an experiment's step for a slice, and reads off what it takes.

    Raises:
      InputError: the experiment does not fit its mesh, or the mesh its devices.
    """
    experiment.check()
    program = make_program(experiment, Layout(experiment.parallel.mesh(list(where.devices))))
    where = where.along(program.layout.mesh)
    empty = _empty(program, where)
    try:
        compiled = compiler(program)
    except DoesNotFit as error:
        # Whether the compiler's number has the state in it depends on where it gave up.
        needed = max(error.needed, empty.state.total)
        verdict = judge(experiment, empty.mesh, needed, error.available, empty.state.total)
        return dataclasses.replace(empty, verdict=dataclasses.replace(verdict, exact=False))
    return _read(experiment, empty, where, compiled)


def state_bytes(program: Program) -> State:
    """What each device holds of the state, from shapes alone."""

    def held(tree: Any, shardings: Any) -> int:
        leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings))
        return sum(math.prod(s.shard_shape(a.shape)) * a.dtype.itemsize for a, s in leaves)

    a, s = program.abstract, program.shardings
    return State(held(a.params, s.params), held(a.opt_state, s.opt_state), held(a.ema, s.ema))


@functools.lru_cache(maxsize=16)
def count_work(experiment: Experiment) -> Work:
    """Counts a step's FLOPs, as one device would do it all."""
    one = dataclasses.replace(experiment, parallel=Parallel(data=1))
    step = _flops(one)
    if getattr(one.model, "remat", "none") == "none":
        return Work(step, step)
    model = one.model.clone(remat="none", parent=None, name=None)
    return Work(_flops(dataclasses.replace(one, model=model)), step)


def _flops(experiment: Experiment) -> int:
    # On a mesh of one, where no part of the program is written for one device of many.
    program = make_program(experiment, Layout(experiment.parallel.mesh(jax.devices("cpu")[:1])))
    return count_flops(program.plain_step(), *program.arguments())


def _empty(program: Program, where: Slice) -> Plan:
    e = program.experiment
    return Plan(
        where=where.name,
        devices=len(where.devices),
        mesh=dict(program.layout.mesh.shape),
        remat=getattr(e.model, "remat", None),
        batch_size=e.training.batch_size,
        accumulation=e.training.accumulation,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params)),
        state=state_bytes(program),
        work=count_work(e),
        compiled=None,
        exchanged=(),
        memory_bytes=0.0,
        unknown_loops=0,
        times=None,
        mfu=None,
        verdict=None,
    )


def _read(experiment: Experiment, empty: Plan, where: Slice, compiled: Compiled) -> Plan:
    text = hlo.parse(compiled.text)
    found = dataclasses.replace(
        empty,
        compiled=dataclasses.replace(compiled, text=""),
        exchanged=tuple(collectives(text, empty.mesh, empty.devices)),
        memory_bytes=memory_bytes(text),
        unknown_loops=text.unknown_loops(),
    )
    if where.chip is None:
        return found
    flops = found.work.step / found.devices
    times = roofline(where, flops, found.memory_bytes, list(found.exchanged))
    share = mfu(where, found.work.model, found.devices, times.estimate)
    total = compiled.memory.total
    verdict = judge(experiment, found.mesh, total, where.chip.hbm, found.state.total)
    return dataclasses.replace(found, times=times, mfu=share, verdict=verdict)
