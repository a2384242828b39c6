"""Meshes and remat policies for a slice, ranked by an estimate, the best of them compiled."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator

import jax
import rich.console
import rich.table

from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.parallel.mesh import Parallel
from dit_jax.planning.compile import compile_step
from dit_jax.planning.estimate import Candidate, estimate, kept_bytes
from dit_jax.planning.plan import Compiler, Plan, count_work, make_plan
from dit_jax.planning.report import ASSUMPTIONS, as_dict, describe_mesh
from dit_jax.planning.topology import GIB, Slice


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
      tried: number of candidates.
      plans: of the best by the estimate, compiled: first those that fit, the fastest first.
    """

    tried: int
    plans: tuple[Plan, ...]


def search(
    experiment: Experiment, where: Slice, count: int, compiler: Compiler = compile_step
) -> Found:
    """Compiles the `count` best candidates, and ranks them by what comes of it.

    Raises:
      InputError: no mesh suits the experiment.
    """
    if count < 1:
        raise InputError(f"--compile is {count}: it must be at least 1")
    experiment.check()
    found = ranked(list(candidates(experiment, where)), where)
    if not found:
        raise InputError(
            f"no mesh of {len(where.devices)} devices suits a batch of "
            f"{experiment.training.batch_size} in {experiment.training.accumulation} parts: "
            f"change --training.batch-size"
        )
    plans = [make_plan(c.experiment, where, compiler) for c in found[:count]]
    plans.sort(key=lambda p: (not p.verdict.fits, p.times.estimate if p.times else 0.0))
    return Found(len(found), tuple(plans))


def ranked(found: list[Candidate], where: Slice) -> list[Candidate]:
    """Those that should fit, the fastest first; then the others, the smallest first."""
    fit = [c for c in found if c.bytes <= where.chip.hbm]
    rest = [c for c in found if c.bytes > where.chip.hbm]
    return sorted(fit, key=lambda c: c.seconds) + sorted(rest, key=lambda c: c.bytes)


def candidates(experiment: Experiment, where: Slice) -> Iterator[Candidate]:
    """All meshes that the experiment's arrays and batch divide over, with all remat policies."""
    choices = ("none", "dots", "full") if hasattr(experiment.model, "remat") else (None,)
    carried = kept_bytes(_with(experiment, choices[-1]))
    abstract = jax.eval_shape(experiment.fresh_state)
    for remat in choices:
        one = _with(experiment, remat)
        work, kept = count_work(one).step, kept_bytes(one)
        for sizes in meshes(len(where.devices)):
            changed = dataclasses.replace(one, parallel=Parallel(**sizes))
            with contextlib.suppress(InputError):
                yield estimate(changed, where, abstract, work, kept, carried)


def meshes(devices: int) -> Iterator[dict[str, int]]:
    """All products of axes that cover a number of devices."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    for fsdp, expert, tensor in itertools.product(sizes, sizes, sizes):
        if tensor <= 8 and devices % (fsdp * expert * tensor) == 0:
            data = devices // (fsdp * expert * tensor)
            yield {"data": data, "fsdp": fsdp, "expert": expert, "tensor": tensor}


def _with(experiment: Experiment, remat: str | None) -> Experiment:
    if remat is None:
        return dataclasses.replace(experiment, parallel=Parallel(data=1))
    model = experiment.model.clone(remat=remat, parent=None, name=None)
    return dataclasses.replace(experiment, model=model, parallel=Parallel(data=1))


def print_search(found: Found, where: Slice, as_json: bool) -> None:
    """Prints what a search found, the best first."""
    if as_json:
        print(
            json.dumps({"tried": found.tried, "plans": [as_dict(p) for p in found.plans]}, indent=2)
        )
        return
    table = rich.table.Table("mesh", "remat")
    for column in ("GiB a device", "to spare", "ms a step", "MFU"):
        table.add_column(column, justify="right")
    for plan in found.plans:
        table.add_row(describe_mesh(plan), plan.remat or "", *_numbers(plan))
    console = rich.console.Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(
        f"{found.tried} candidates were ranked by an estimate of state, kept activations, matmuls "
        f"and exchange; the best {len(found.plans)} were compiled for {where.name}."
    )
    console.print(ASSUMPTIONS)


def _numbers(plan: Plan) -> tuple[str, ...]:
    spare = f"{plan.verdict.bytes / GIB:.2f}" if plan.verdict else ""
    if not plan.compiled or not plan.times:
        return "", spare, "does not fit", ""
    t = plan.times
    total = f"{plan.compiled.memory.total / GIB:.2f}"
    time = f"{t.estimate * 1e3:,.0f} ({t.fastest * 1e3:,.0f}-{t.slowest * 1e3:,.0f})"
    return total, spare, time, f"{plan.mfu:.0%}"
