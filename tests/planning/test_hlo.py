import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dit_jax.planning.groups import axes_of, read_groups
from dit_jax.planning.hlo import arrays, parse
from dit_jax.planning.memory_traffic import memory_bytes
from dit_jax.planning.traffic import collectives

LOOP = textwrap.dedent(
    """\
    HloModule step

    %add (a: f32[], b: f32[]) -> f32[] {
      %a = f32[] parameter(0)
      %b = f32[] parameter(1)
      ROOT %sum = f32[] add(%a, %b)
    }

    %body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
      %state = (s32[], f32[8,4]{1,0}) parameter(0)
      %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
      %sum.1 = f32[8,4]{1,0} all-reduce(%x), channel_id=1, GROUPS, to_apply=%add
      %i = s32[] get-tuple-element(%state), index=0
      ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%i, %sum.1)
    }

    %condition (state.1: (s32[], f32[8,4])) -> pred[] {
      %state.1 = (s32[], f32[8,4]{1,0}) parameter(0)
      %i.1 = s32[] get-tuple-element(%state.1), index=0
      %bound = s32[]{:T(128)} constant(5), metadata={op_name="while/cond"}
      ROOT %less = pred[] compare(%i.1, %bound), direction=LT
    }

    ENTRY %main (x.1: f32[4,4]) -> f32[8,4] {
      %x.1 = f32[4,4]{1,0} parameter(0)
      %all = f32[8,4]{1,0} all-gather(%x.1), channel_id=2, ACROSS, dimensions={0}
      %zero = s32[] constant(0)
      %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %all)
      %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%condition, body=%body
      ROOT %last = f32[8,4]{1,0} get-tuple-element(%loop), index=1
    }
    """
)
LOOP = LOOP.replace("GROUPS", "replica_groups={{0,1},{2,3}}")
LOOP = LOOP.replace("ACROSS", "replica_groups=[2,2]<=[2,2]T(1,0)")
MESH = {"data": 2, "fsdp": 2}


def found(text, mesh=MESH, devices=4):
    return {(c.kind, c.axes): (c.times, c.bytes) for c in collectives(parse(text), mesh, devices)}


def test_a_loop_counts_as_often_as_it_runs():
    assert found(LOOP) == {
        # Twice what a ring of 2 sends once, 5 times; groups of neighbours are the last axis.
        ("all-reduce", ("fsdp",)): (5, 5 * 2 * (8 * 4 * 4) / 2),
        ("all-gather", ("data",)): (1, (8 * 4 * 4) / 2),
    }


def test_a_kernels_own_lines_do_not_end_a_computation():
    """A Pallas kernel's text goes on over several lines, some of which start with a brace."""
    kernel = "  %k = f32[8,4]{1,0} custom-call(%x), backend_config={{\n}}, metadata={}\n"
    found = parse(LOOP.replace("  %sum.1 =", f"{kernel}  %sum.1 ="))
    times = {run.instruction.opcode: run.times for run in found.runs()}
    assert times["custom-call"] == times["all-reduce"] == 5


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    text = LOOP.replace("constant(5)", "parameter(1)")
    assert parse(text).unknown_loops() == 1
    assert found(text)["all-reduce", ("fsdp",)][0] == 1
    assert parse(LOOP).unknown_loops() == 0


def test_a_note_of_the_compiler_says_how_often_a_loop_runs():
    note = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    assert found(LOOP.replace("body=%body", note))["all-reduce", ("fsdp",)][0] == 7


def test_a_bound_within_a_fusion_of_the_condition_is_found():
    fused = "%fused (p: s32[]) -> pred[] {\n  %p = s32[] parameter(0)\n"
    fused += "  %bound = s32[] constant(5)\n  ROOT %c = pred[] compare(%p, %bound)\n}\n\n"
    text = LOOP.replace("  %bound = s32[]{:T(128)} constant(5)", "  %gone = pred[] constant(false)")
    text = text.replace("compare(%i.1, %bound), direction=LT", "fusion(%i.1), calls=%fused")
    assert found(text.replace("%body (", fused + "%body ("))["all-reduce", ("fsdp",)][0] == 5


def test_an_exchange_spread_over_fusions_counts_once():
    gather = "bf16[8,4]{1,0} all-gather(%p), channel_id=9, replica_groups={{0,1,2,3}}"
    text = "".join(
        f"%fused.{n} (p: bf16[2,4]) -> bf16[8,4] {{\n  %p = bf16[2,4] parameter(0)\n"
        f"  ROOT %g.{n} = {gather}\n}}\n\n"
        for n in (1, 2)
    )
    text += "ENTRY %main (p: bf16[2,4]) -> bf16[8,4] {\n  %p = bf16[2,4] parameter(0)\n"
    text += "  %a = bf16[8,4] fusion(%p), kind=kCustom, calls=%fused.1\n"
    text += "  ROOT %b = bf16[8,4] fusion(%p), kind=kCustom, calls=%fused.2\n}\n"
    assert found(text) == {("all-gather", ("data", "fsdp")): (1, 64 * 3 / 4)}


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("bf16[16] reduce-scatter(%p)", 32 * 3),
        ("(bf16[16], bf16[64], u32[]) all-gather-start(%p)", 128 * 3 / 4),
        ("(bf16[16], bf16[16], u32[], u32[]) collective-permute-start(%p)", 32),
        ("bf16[16] all-to-all(%p)", 32 * 3 / 4),
        ("bf16[99] ragged-all-to-all(%p)", 32 * 3 / 4),
        ("(bf16[16], f32[8]) all-reduce(%p)", 2 * 64 * 3 / 4),
    ],
)
def test_what_a_device_sends(line, sent):
    note = "replica_groups={{0,1,2,3}}"
    if "permute" in line:
        note = "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
    text = "ENTRY %main (p: bf16[16]) -> bf16[16] {\n  %p = bf16[16] parameter(0)\n"
    text += f"  ROOT %r = {line}, channel_id=1, {note}\n}}\n"
    assert list(found(text).values()) == [(1, sent)]


@pytest.mark.parametrize(
    ("note", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a':(1)2}", None),
        ("something else", None),
    ],
)
def test_notations_of_groups(note, groups):
    assert read_groups(note, 4) == groups


def test_axes_of_groups():
    mesh = {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
    assert axes_of([[0, 1], [2, 3], [4, 5], [6, 7]], mesh) == ("tensor",)
    assert axes_of([[0, 2], [1, 3]], mesh) == ("fsdp",)
    assert axes_of([[0, 2, 4, 6], [1, 3, 5, 7]], mesh) == ("data", "fsdp")
    assert axes_of([[0, 4], [4, 0]], mesh) == ("data",)
    assert axes_of([[0, 1, 2], [3, 4, 5]], mesh) == ("?",)
    assert axes_of(None, mesh) == ("?",)


def test_sizes_of_shapes():
    shape = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, pred[5]{0}, s4[8]{0})"
    assert arrays(shape) == [12, 4, 5, 4]
    assert arrays(shape, on_chip=False) == [4, 5, 4]


def test_what_is_kept_in_vmem_is_free_and_slices_cost_their_size():
    text = "%slice (p: f32[28,8], i: s32[]) -> f32[8] {\n  %p = f32[28,8]{1,0} parameter(0)\n"
    text += "  %i = s32[] parameter(1)\n  ROOT %s = f32[1,8]{1,0} dynamic-slice(%p, %i)\n}\n\n"
    text += "ENTRY %main (p: f32[28,8], i: s32[]) -> f32[8] {\n"
    text += "  %p.1 = f32[28,8]{1,0} parameter(0)\n  %i.1 = s32[]{:S(1)} parameter(1)\n"
    text += "  %s.1 = f32[1,8]{1,0:S(1)} fusion(%p.1, %i.1), kind=kLoop, calls=%slice\n"
    text += "  ROOT %e = f32[1,8]{1,0} exponential(%s.1)\n}\n"
    assert memory_bytes(parse(text)) == 32 + 32  # The slice is read; the result is written.


@pytest.mark.parametrize(("rows", "columns"), [("fsdp", None), (None, "fsdp")])
def test_a_real_program_on_eight_devices(rows, columns):
    devices = np.array(jax.devices()[:8]).reshape(2, 4)
    mesh = Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))  # noqa: E731

    def function(x, layers):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, layers)[0].sum()

    gradient = jax.jit(
        jax.grad(function, argnums=1),
        in_shardings=(place("data"), place(None, rows, columns)),
        out_shardings=place(None, rows, columns),
    )
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32)
    layers = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32)
    program = parse(gradient.lower(x, layers).compile().as_text())
    assert not program.unknown_loops()
    kinds = found_on(program)
    assert all("?" not in axes for _, axes in kinds)
    # Gradients of all 6 layers are summed over the copies.
    summed = [size for (kind, axes), (_, size) in kinds.items() if "data" in axes]
    assert sum(summed) == pytest.approx(6 * 64 * 64 * 4 / 4, rel=0.1)
    assert any("fsdp" in axes for _, axes in kinds)


def found_on(program):
    mesh = {"data": 2, "fsdp": 4}
    return {(c.kind, c.axes): (c.times, c.bytes) for c in collectives(program, mesh, 8)}
