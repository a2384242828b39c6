"""Plans for people and for programs."""

import dataclasses
from typing import Any

import rich.console
import rich.table

from dit_jax.planning.plan import Plan
from dit_jax.planning.roofline import LINKS, MATMUL, MEMORY
from dit_jax.planning.topology import GIB, Slice

ASSUMPTIONS = (
    f"Times: uncalibrated on real chips. Taken to be reached: {MATMUL:.0%} of the peak FLOP/s in "
    f"matmuls, {MEMORY:.0%} of HBM's and {LINKS:.0%} of the links' bandwidth. The bar runs from "
    "all at once to one after another; elementwise work and waiting come on top."
)


def as_dict(plan: Plan) -> dict[str, Any]:
    """A plan as JSON's types, in bytes, FLOPs and seconds."""
    found = dataclasses.asdict(plan)
    if plan.compiled:
        found["compiled"]["memory"]["total"] = plan.compiled.memory.total
        del found["compiled"]["text"]
    if plan.times:
        times = plan.times
        found["times"] |= {
            "estimate": times.estimate,
            "fastest": times.fastest,
            "slowest": times.slowest,
            "bound": times.bound,
        }
    found["exchanged"] = [
        {"kind": c.kind, "axes": list(c.axes), "times": c.times, "bytes": c.bytes}
        for c in plan.exchanged
    ]
    return found


def print_plan(plan: Plan, where: Slice) -> None:
    """Prints a plan."""
    console = rich.console.Console(highlight=False, soft_wrap=True)
    console.print(f"{plan.where}: {plan.devices} devices, {describe_mesh(plan)}")
    console.print(
        f"{plan.parameters / 1e9:.3f}B parameters, {plan.batch_size} images a step"
        + (f" in {plan.accumulation} parts" if plan.accumulation > 1 else "")
        + (f", remat {plan.remat}" if plan.remat else "")
    )
    console.print(_memory_table(plan, where))
    if plan.exchanged:
        console.print(_traffic_table(plan))
    for line in _lines(plan, where):
        console.print(line)


def describe_mesh(plan: Plan) -> str:
    """The mesh's axes that are longer than one device."""
    axes = [f"{name}={size}" for name, size in plan.mesh.items() if size > 1]
    return " x ".join(axes) or "one device"


def _memory_table(plan: Plan, where: Slice) -> rich.table.Table:
    table = rich.table.Table("one device's memory")
    table.add_column("GiB", justify="right")
    state = plan.state
    rows = {
        "parameters": state.parameters,
        "optimizer": state.optimizer,
        "EMA": state.ema,
    }
    if plan.compiled:
        memory = plan.compiled.memory
        rows |= {
            "batch and other arguments": memory.arguments - state.total,
            "activations, gradients and other temporaries": memory.temporaries,
            "outputs": memory.outputs,
            "program": memory.program,
            "in all": memory.total,
        }
    if where.chip:
        rows["there is"] = where.chip.hbm
    if plan.verdict:
        rows["to spare" if plan.verdict.fits else "missing"] = abs(plan.verdict.bytes)
    for name, size in rows.items():
        table.add_row(name, f"{size / GIB:.2f}")
    return table


def _traffic_table(plan: Plan) -> rich.table.Table:
    table = rich.table.Table("exchange", "along")
    for column in ("times a step", "GB sent a device"):
        table.add_column(column, justify="right")
    for c in plan.exchanged:
        table.add_row(c.kind, " x ".join(c.axes), f"{c.times:,}", f"{c.bytes / 1e9:.3f}")
    return table


def _lines(plan: Plan, where: Slice) -> list[str]:
    work, lines = plan.work, []
    again = work.step / work.model - 1
    lines.append(
        f"work: {work.step / 1e12:,.1f} TFLOP a step, {again:.1%} more than without recomputing; "
        f"{plan.memory_bytes / 1e9:.1f} GB to and from a device's HBM"
    )
    if not plan.compiled:
        lines[0] = lines[0].split(";")[0]
    if plan.times:
        t = plan.times
        lines += [
            f"time: {_ms(t.estimate)} a step, between {_ms(t.fastest)} and {_ms(t.slowest)} "
            f"(compute {_ms(t.compute)}, HBM {_ms(t.memory)}, interconnect {_ms(t.wire)}): "
            f"{t.bound} binds",
            f"rate: {plan.batch_size / t.estimate:,.0f} images/s; MFU {plan.mfu:.0%}, between "
            f"{plan.mfu * t.estimate / t.slowest:.0%} and {plan.mfu * t.estimate / t.fastest:.0%}",
            ASSUMPTIONS + f" Peaks: {where.chip.source}",
        ]
    if plan.unknown_loops:
        lines.append(f"{plan.unknown_loops} loops of unknown length are counted as one turn each")
    if plan.compiled:
        lines.append(
            f"compiled in {plan.compiled.seconds:.0f} s, with {plan.compiled.ram / 1e9:.1f} GB "
            "of this machine's memory"
        )
    if plan.verdict:
        lines.append(f"verdict: {plan.verdict}")
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
