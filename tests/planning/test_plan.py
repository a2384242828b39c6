import dataclasses
import json

import jax
import pytest

from dit_jax.errors import InputError
from dit_jax.parallel.mesh import Parallel
from dit_jax.planning.compile import Compiled, DoesNotFit, Memory, compile_step, read_exhausted
from dit_jax.planning.plan import count_work, make_plan
from dit_jax.planning.report import as_dict, print_plan
from dit_jax.planning.roofline import LINKS, MATMUL, MEMORY, Roofline, mfu, roofline
from dit_jax.planning.topology import CHIPS, GIB, Slice, local_slice
from dit_jax.planning.traffic import Collective
from dit_jax.planning.verdict import judge
from tests.planning.small import experiment


@dataclasses.dataclass(frozen=True)
class Device:
    coords: tuple[int, int, int]
    slice_index: int = 0


def slice_of(chip, *sides):
    places = [(x, y, z) for z in range(sides[2]) for y in range(sides[1]) for x in range(sides[0])]
    return Slice("test", CHIPS[chip], tuple(map(Device, places)), sides)


def test_links_of_groups():
    line, cube = slice_of("v5e", 4, 4, 1), slice_of("v5p", 4, 4, 4)
    assert line.links([0, 1, 2, 3]) == 1
    assert line.links(list(range(16))) == 2
    assert cube.links([0, 1, 2, 3]) == 2  # Closed to a ring.
    assert cube.links(list(range(64))) == 6
    assert slice_of("v5p", 4, 4, 2).links(list(range(32))) == 3
    assert slice_of("v5e", 16, 16, 1).links(list(range(16))) == 2


def test_the_roofline_divides_by_published_peaks():
    where = slice_of("v5e", 4, 4, 1)
    sent = Collective("all-gather", ("fsdp",), 1, 1e9, tuple(range(16)))
    times = roofline(where, 197e12 * MATMUL, 819e9 * MEMORY * 2, [sent])
    assert times.compute == pytest.approx(1)
    assert times.memory == pytest.approx(2)
    assert times.wire == pytest.approx(1e9 / (2 * 50e9 * LINKS))
    assert times.bound == "HBM"
    assert mfu(where, 197e12, 16, 0.125) == pytest.approx(0.5)


def test_a_permute_takes_one_link_and_an_exchange_of_all_crosses_the_ring():
    where = slice_of("v5e", 16, 16, 1)
    seconds = {
        kind: roofline(where, 0, 0, [Collective(kind, ("x",), 1, 8e9, group)]).wire
        for kind, group in (("collective-permute", (0, 1)), ("all-to-all", tuple(range(16))))
    }
    assert seconds["collective-permute"] == pytest.approx(8e9 / (50e9 * LINKS))
    assert seconds["all-to-all"] == pytest.approx(8e9 * 4 / (2 * 50e9 * LINKS))


def test_slices_are_joined_by_the_network():
    one = slice_of("v5e", 4, 4, 1)
    other = tuple(dataclasses.replace(device, slice_index=1) for device in one.devices)
    both = dataclasses.replace(one, devices=one.devices + other, slices=2)
    replicas = Collective("all-reduce", ("data",), 1, 1e9, (0, 16))
    assert roofline(both, 0, 0, [replicas]).wire == pytest.approx(1e9 / (3.1e9 * LINKS))
    everyone = Collective("all-gather", ("fsdp",), 1, 1e9, tuple(range(32)))
    within, between = 1e9 / (2 * 50e9), 1e9 / 16 / 3.1e9
    assert roofline(both, 0, 0, [everyone]).wire == pytest.approx((within + between) / LINKS)


def test_the_error_bar_holds_the_estimate():
    times = Roofline(3.0, 1.0, 2.0)
    assert (times.fastest, times.estimate, times.slowest) == (3.0, 4.5, 6.0)


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (23.40G) exceeds available HBM (15.75G).",
            23.40,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 1.5T of 95.74G hbm. "
            "Exceeded hbm capacity by 1.4T.",
            1536,
            95.74,
        ),
    ],
)
def test_the_compilers_complaint_is_read(message, needed, available):
    error = read_exhausted(message)
    assert error.needed / GIB == pytest.approx(needed)
    assert error.available / GIB == pytest.approx(available)


@pytest.mark.parametrize("message", ["INTERNAL: oh", "RESOURCE_EXHAUSTED: vmem, 3M of 2M"])
def test_other_complaints_are_not(message):
    assert read_exhausted(message) is None


MESH = {"data": 4, "fsdp": 2, "expert": 1, "tensor": 1}


def test_a_verdict_counts_what_is_left():
    verdict = judge(experiment(), MESH, 10 * GIB, 16 * GIB, 5 * GIB)
    assert verdict.fits
    assert str(verdict) == "fits, with 6.00 GiB a device to spare"


def test_copies_of_a_large_state_are_divided_first():
    verdict = judge(experiment(batch=64), MESH, 30 * GIB, 16 * GIB, 15 * GIB)
    assert not verdict.fits
    assert verdict.bytes == -14 * GIB
    assert "--parallel.data 1 --parallel.fsdp 8" in verdict.advice[0]


def test_large_activations_are_recomputed_or_made_in_parts():
    small = experiment(batch=64, remat="dots")
    verdict = judge(small, MESH, 30 * GIB, 16 * GIB, 1 * GIB)
    assert "--model.remat full" in verdict.advice[0]
    assert "--training.accumulation 2 " in verdict.advice[1]
    recomputed = experiment(batch=64, remat="full")
    verdict = judge(recomputed, MESH, 100 * GIB, 16 * GIB, 1 * GIB)
    assert "--training.accumulation 8 " in verdict.advice[0]


def test_where_nothing_helps_more_chips_do():
    alone = {"data": 1, "fsdp": 8, "expert": 1, "tensor": 1}
    verdict = judge(experiment(batch=8, remat="full"), alone, 30 * GIB, 16 * GIB, 20 * GIB)
    assert verdict.advice == ("more chips, or chips with more memory",)


def on_chips(where):
    return dataclasses.replace(where, chip=CHIPS["v5e"], sides=(8, 1, 1))


def given(needed):
    def compiler(program):
        return Compiled("ENTRY %main () -> f32[] {\n}\n", Memory(GIB, 0, needed, 0), 1.0, 1)

    return compiler


@pytest.fixture
def stub_places(monkeypatch):
    """CPU devices have no places in a slice."""
    monkeypatch.setattr(Slice, "links", lambda self, group: 1)
    monkeypatch.setattr(Slice, "longest", lambda self, group: 1)


def test_state_is_divided_as_the_program_divides_it(stub_places):
    where = on_chips(local_slice())
    plans = [
        make_plan(dataclasses.replace(experiment(), parallel=p), where, given(GIB))
        for p in (Parallel(), Parallel(data=1, fsdp=8))
    ]
    copies, divided = (plan.state for plan in plans)
    assert copies.parameters == 4 * plans[0].parameters
    # Replicas divide what is needed in updates alone.
    assert copies.ema < copies.parameters / 4
    assert copies.optimizer == pytest.approx(2 * copies.ema, rel=0.01)
    assert divided.parameters < copies.parameters / 4
    assert plans[0].verdict.fits


def test_a_compiler_that_gives_up_gives_a_verdict(stub_places, capsys):
    def compiler(program):
        raise DoesNotFit(20 * GIB, 16 * GIB)

    where = on_chips(local_slice())
    plan = make_plan(experiment(batch=64), where, compiler)
    assert plan.verdict.bytes == -4 * GIB
    print_plan(plan, where)
    assert "does not fit, by at least 4.00 GiB a device" in capsys.readouterr().out
    assert json.loads(json.dumps(as_dict(plan)))["compiled"] is None


def test_the_step_that_is_planned_is_the_one_that_is_compiled(capsys):
    where = local_slice()
    small = dataclasses.replace(experiment(), parallel=Parallel(data=2, fsdp=4))
    plan = make_plan(small, where, compile_step)
    assert plan.verdict is None and plan.times is None
    assert plan.compiled.memory.arguments >= plan.state.total
    axes = {c.axes for c in plan.exchanged}
    assert any("fsdp" in found for found in axes) and any("data" in found for found in axes)
    assert plan.memory_bytes > 0
    print_plan(plan, where)
    out = capsys.readouterr().out
    assert "8 devices, data=2 x fsdp=4" in out and "optimizer" in out
    found = json.loads(json.dumps(as_dict(plan)))
    assert found["compiled"]["memory"]["total"] == plan.compiled.memory.total


def test_work_is_three_forward_passes_and_what_is_recomputed():
    from dit_jax.flops import forward_flops

    small = experiment(batch=64, remat="full")
    work, none = count_work(small), count_work(experiment(batch=64, remat="none"))
    assert work.model == none.model == none.step
    forward = 64 * forward_flops(small.model, small.shape)
    # The patches need no gradient, which is much in so small a model.
    assert 2.8 * forward < work.model <= 3 * forward
    assert work.model < work.step < work.model + forward


def test_accumulation_does_not_change_the_work():
    parts = dataclasses.replace(experiment(batch=64).training, accumulation=4)
    parted = dataclasses.replace(experiment(batch=64), training=parts)
    assert count_work(parted).model == count_work(experiment(batch=64)).model


def test_a_mesh_that_does_not_suit_is_refused():
    wrong = dataclasses.replace(experiment(batch=8), parallel=Parallel(data=3))
    with pytest.raises(InputError, match="does not cover 8 devices"):
        make_plan(wrong, local_slice())
    with pytest.raises(InputError, match="does not divide over 8 devices"):
        make_plan(experiment(batch=12), local_slice())
    assert jax.device_count() == 8
