"""What the TPU's compiler makes of a step on 8 chips: what travels, and where."""

import dataclasses
import functools
import re

import pytest

from dit_jax.models import dit_moe
from dit_jax.parallel.mesh import RECIPES
from dit_jax.parallel.sharding import Layout
from dit_jax.planning import hlo
from dit_jax.planning.compile import compile_step
from dit_jax.planning.topology import find_slice
from dit_jax.planning.traffic import KINDS
from dit_jax.training.program import make_program
from tests.planning.small import experiment

pytest.importorskip("libtpu", reason="needs the TPU's compiler: make test-tpu")
DEPTH, HIDDEN = 5, 256
SIZES = {"patch": 2, "num_classes": 10, "dtype": "bfloat16", "remat": "full"}


@functools.cache
def program(recipe: str, experts: bool = False) -> hlo.Program:
    """The compiled text, parsed, of a step of a small model."""
    if experts:
        model = dit_moe(DEPTH, HIDDEN, 4, experts=8, **SIZES)
    else:
        model = experiment().model.clone(hidden=HIDDEN, depth=DEPTH, heads=4, **SIZES)
    run = dataclasses.replace(experiment(), model=model, parallel=RECIPES[recipe])
    where = find_slice("v5e:2x4")
    layout = Layout(run.parallel.mesh(list(where.devices)))
    return hlo.parse(compile_step(make_program(run, layout)).text)


def exchanges(found: hlo.Program, *kinds: str):
    """Exchanges of more than a few numbers: how often, dimensions of each result, where."""
    for run in found.runs():
        if run.instruction.opcode.removesuffix("-start") not in kinds:
            continue
        for sides in re.findall(r"\w+\[([\d,]+)\]", run.instruction.shape):
            sides = [int(side) for side in sides.split(",")]
            if max(sides) >= HIDDEN:
                yield run.times, sides, run.owner


def test_layers_are_gathered_one_at_a_time_in_both_passes():
    found = list(exchanges(program("fsdp"), "all-gather", "all-reduce"))
    gathers = [(times, sides, loop) for times, sides, loop in found if times % DEPTH == 0]
    loops = {loop for _, _, loop in gathers}
    assert len(loops) >= 2, loops  # The body of the forward pass, and that of the backward pass.
    assert not [sides for _, sides, _ in found if sides[0] == DEPTH and len(sides) > 2]


def test_gradients_leave_the_loop_in_parts():
    """No stack of all layers is whole anywhere: of axes, one is divided by 8."""
    whole = rf"\[{DEPTH},{HIDDEN},(3,4,{HIDDEN // 4}|{4 * HIDDEN}|{6 * HIDDEN})\]"
    parts = rf"\[{DEPTH},{HIDDEN // 8},"
    shapes = [run.instruction.shape for run in program("fsdp").runs()]
    assert not [shape for shape in shapes if re.search(whole, shape)]
    assert [shape for shape in shapes if re.search(parts, shape)]


def test_rows_travel_to_experts_and_back_within_the_loops():
    found = program("fsdp+ep", experts=True)
    trips = [run.times for run in found.runs() if run.instruction.opcode == "ragged-all-to-all"]
    # There and back; there twice and back, for the gradients; and again what is recomputed.
    assert sum(trips) == 7 * DEPTH
    assert not list(exchanges(program("fsdp"), "ragged-all-to-all", "all-to-all"))


def test_heads_are_exchanged_for_tokens_within_the_loops():
    found = [run for run in program("fsdp+sp").runs() if run.instruction.opcode == "all-to-all"]
    assert sum(run.times for run in found) >= 4 * DEPTH
    assert all(kind in KINDS for kind in {run.instruction.opcode for run in found})
