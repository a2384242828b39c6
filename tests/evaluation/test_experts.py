"""The use of experts: counts against a loop, maps of known routers, and the command itself."""

import csv
import dataclasses
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dit_jax.diffusion import Euler, Sampling
from dit_jax.errors import InputError
from dit_jax.evaluation.expert_use import expert_use, measure, shares
from dit_jax.evaluation.experts import draw_experts
from dit_jax.layers.block import Alternate
from dit_jax.layers.mlp import Mlp
from dit_jax.models import DiT, dit_moe
from dit_jax.models.output import Output
from dit_jax.moe import MlpExperts, MoE, Routing
from dit_jax.moe.routers import (
    DiffMoERouter,
    DiTMoERouter,
    ExpertChoiceRouter,
    ProMoEExpertChoiceRouter,
    ProMoERouter,
)
from dit_jax.training.loop import train
from tests.evaluation.tiny_run import tiny_run
from tests.training import tiny

LAYERS, SAMPLES, TOKENS, EXPERTS = 2, 4, 6, 5
TIMES = np.array([0.125, 0.375, 0.625, 0.875])
PICTURES = {"by_time", "by_class", "by_position", "balance"}


def routing_of(groups, slots, chooses):
    """Random slots, some of them not used; their tokens as of tokens or of experts that choose."""
    rng = np.random.default_rng(groups)
    members = SAMPLES * TOKENS // groups
    experts = rng.integers(0, EXPERTS + 1, (LAYERS, groups, slots * members), np.int32)
    tokens = rng.integers(0, members, experts.shape, np.int32) if chooses == "experts" else None
    return Routing(jnp.ones(experts.shape), experts, tokens, EXPERTS)


def counted_in_a_loop(routing):
    layers, groups, slots = routing.experts.shape
    members = SAMPLES * TOKENS // groups
    use = np.zeros((layers, SAMPLES, TOKENS, EXPERTS), int)
    for layer, group, slot in np.ndindex(layers, groups, slots):
        token = slot // (slots // members)
        if routing.tokens is not None:
            token = routing.tokens[layer, group, slot]
        sample, token = divmod(group * members + token, TOKENS)
        expert = routing.experts[layer, group, slot]
        if expert < EXPERTS:
            use[layer, sample, token, expert] += 1
    return use


@pytest.mark.parametrize("chooses", ["tokens", "experts"])
@pytest.mark.parametrize("groups", [SAMPLES, 2, 1])
def test_counts_are_those_of_a_loop(groups, chooses):
    routing = routing_of(groups, 2, chooses)
    use = expert_use(routing, SAMPLES, TOKENS)
    np.testing.assert_array_equal(use, counted_in_a_loop(routing))
    assert use.sum() == np.sum(routing.experts < EXPERTS) < routing.experts.size


class Rule(nn.Module):
    """A model of two layers of experts, chosen by time, position or class; the second by one more.

    Time has four equal parts, position sixteen tokens, and class ten and the null label.
    """

    by: str
    patch: int = 2
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, t, condition, train=False):
        rules = {
            "time": jnp.int32(t * 4)[:, None],
            "position": jnp.arange(16)[None],
            "class": condition["label"][:, None],
        }
        expert = jnp.broadcast_to(rules[self.by], (len(x), 16))
        experts = jnp.stack([expert, expert + 1])
        return Output(x, {"routing": Routing(jnp.ones(experts.shape), experts, None, 17)})

    def null_condition(self, condition):
        return {"label": jnp.full_like(condition["label"], self.num_classes)}


def measured(run, count=10):
    """The use of experts for as many digits, in batches of which the last is short."""
    records = run.experiment.data.open("test")
    images = np.stack([records[i]["image"] for i in range(count)])
    labels = np.array([records[i]["label"] for i in range(count)])
    return measure(run, images, labels, TIMES, batch_size=4, seed=0), labels


def measured_rule(by, count=10):
    run = tiny_run()
    experiment = dataclasses.replace(run.experiment, model=Rule(by))
    return measured(dataclasses.replace(run, experiment=experiment, params={}), count)


def maps(choices):
    """Shares [2, ..., 17] of experts that are always chosen: `choices`, and one more."""
    return np.eye(17)[np.stack([choices, choices + 1])]


def test_a_rule_of_time_is_seen():
    use, _ = measured_rule("time")
    np.testing.assert_array_equal(shares(use.by_time), maps(np.arange(4)))
    np.testing.assert_array_equal(use.by_time.sum(-1), np.full((2, 4), 10 * 16))
    even = shares(use.by_position)[0, ..., :4]
    np.testing.assert_array_equal(even, np.full((4, 4, 4), 0.25))


def test_a_rule_of_position_is_seen_row_by_row():
    use, _ = measured_rule("position")
    np.testing.assert_array_equal(shares(use.by_position), maps(np.arange(16).reshape(4, 4)))
    np.testing.assert_array_equal(shares(use.by_time)[0, :, :16], np.full((4, 16), 1 / 16))


def test_a_rule_of_class_is_seen_with_the_null_label():
    use, labels = measured_rule("class", count=60)
    assert len(set(labels)) == 10
    np.testing.assert_array_equal(shares(use.by_class), maps(np.arange(10)))
    np.testing.assert_array_equal(shares(use.without_class), maps(np.array(10)))
    np.testing.assert_array_equal(use.without_class.sum(-1), np.full(2, 60 * 4 * 16))


def test_a_class_that_was_not_drawn_has_no_shares():
    use, labels = measured_rule("class", count=3)
    found = ~np.isnan(shares(use.by_class)).any((0, 2))
    np.testing.assert_array_equal(np.flatnonzero(found), np.unique(labels))


def moe_run(router, num_classes=10):
    ffn = Alternate((Mlp(), MoE(router, MlpExperts(ratio=1.0))))
    model = DiT(
        patch=4, hidden=16, depth=4, heads=2, ffn=ffn, num_classes=num_classes, learn_sigma=False
    )
    return tiny_run(model=model, sampling=Sampling(Euler(steps=1)))


@pytest.mark.parametrize(
    "router",
    [
        DiTMoERouter(4),
        ExpertChoiceRouter(4, capacity=2.0),
        DiffMoERouter(4),
        ProMoERouter(4),
        ProMoEExpertChoiceRouter(4),
    ],
    ids=lambda router: type(router).__name__,
)
def test_marginals_of_every_kind_of_router_agree(router):
    use, labels = measured(moe_run(router))
    assert use.by_time.shape == (2, 4, router.count)
    assert use.by_position.shape == (2, 2, 2, router.count)
    total = use.by_time.sum(1)
    np.testing.assert_array_equal(use.by_class.sum(1), total)
    np.testing.assert_array_equal(use.by_position.sum((1, 2)), total)
    if not isinstance(router, DiffMoERouter):  # Its thresholds let any number through.
        passed = len(labels) * len(TIMES) * 4
        np.testing.assert_array_equal(total.sum(-1), np.full(2, passed * router.chosen))
    if isinstance(router, ExpertChoiceRouter):
        assert len(np.unique(total)) == 1
    if router.count > router.experts:  # ProMoE: the last expert is that of the null label.
        assert not total[:, -1].any()
        assert use.without_class[:, :-1].sum() == 0 < use.without_class[:, -1].min()


def test_an_unconditional_model_has_no_null_label():
    use, _ = measured(moe_run(DiTMoERouter(4), num_classes=0))
    assert use.without_class is None and use.by_class.shape == (2, 10, 4)


def test_the_same_seed_counts_the_same():
    first, second = (measured(moe_run(DiTMoERouter(4)))[0] for _ in range(2))
    jax.tree.map(
        np.testing.assert_array_equal, dataclasses.asdict(first), dataclasses.asdict(second)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe")
    model = dit_moe(2, hidden=16, heads=2, experts=4, patch=2, num_classes=10, learn_sigma=False)
    train(tiny.experiment(folder, model=model, training__steps=5))
    return folder


def command(*args):
    return subprocess.run(
        [sys.executable, "-m", "dit_jax", "experts", *map(str, args)],
        cwd=tiny.ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def drawn(trained):
    done = command(trained, "--samples", 100, "--times", 4, "--batch-size", 64)
    assert done.returncode == 0, done.stderr
    return done.stdout, trained / "experts"


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_leaves_pictures_and_tables(drawn):
    stdout, folder = drawn
    assert "100 images of the test split at 4 times" in stdout and str(folder) in stdout
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{name}.{kind}" for name in PICTURES for kind in ("png", "csv")}
    for name in PICTURES:
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture).reshape(-1, 4), axis=0)) > 10


@pytest.mark.parametrize(
    "name, axes, rows",
    [
        ("by_time", ["layer", "time"], 2 * 4),
        ("by_class", ["layer", "class"], 2 * 11),
        ("by_position", ["layer", "row", "column"], 2 * 4 * 4),
    ],
)
def test_tables_name_every_axis_and_sum_to_one(drawn, name, axes, rows):
    lines = table(drawn[1] / f"{name}.csv")
    assert list(lines[0]) == [*axes, "expert", "share"] and len(lines) == 4 * rows
    sums = {}
    for line in lines:
        index = tuple(line[axis] for axis in axes)
        sums[index] = sums.get(index, 0) + float(line["share"])
    assert len(sums) == rows
    np.testing.assert_allclose(list(sums.values()), 1, atol=3e-6)


def test_times_and_classes_have_their_names(drawn):
    times = {line["time"] for line in table(drawn[1] / "by_time.csv")}
    classes = {line["class"] for line in table(drawn[1] / "by_class.csv")}
    assert times == {"0.125", "0.375", "0.625", "0.875"}
    assert classes == {*map(str, range(10)), "null"}


def test_the_balance_is_the_logs(drawn, trained):
    logged = [json.loads(line) for line in tiny.log_text(trained).splitlines()]
    expected = [(r["step"], r["moe_max_load"], r["moe_entropy"]) for r in logged]
    found = [tuple(map(float, line.values())) for line in table(drawn[1] / "balance.csv")]
    assert found == expected and len(found) == 5


def test_without_a_log_there_is_no_balance(trained, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(trained / "checkpoints")
    lines = draw_experts(str(tmp_path / "run"), str(tmp_path / "out"), 4, 1, 4, 0)
    assert "no balance" in lines[-1]
    names = {path.stem for path in (tmp_path / "out").iterdir()}
    assert names == PICTURES - {"balance"}


def test_a_second_time_writes_nothing_over_the_first(drawn, trained):
    before = {path: path.stat().st_mtime_ns for path in drawn[1].iterdir()}
    done = command(trained)
    assert done.returncode == 2 and "--out" in done.stderr and done.stderr.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in drawn[1].iterdir()}


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        draw_experts(str(tmp_path), None, 4, 1, 4, 0)
    assert not list(tmp_path.iterdir())


def test_a_run_without_experts_is_refused(tmp_path):
    train(tiny.experiment(tmp_path / "run", training__steps=1))
    with pytest.raises(InputError, match="DiT has no experts"):
        draw_experts(str(tmp_path / "run"), None, 4, 1, 4, 0)
    assert not (tmp_path / "run" / "experts").exists()


@pytest.mark.parametrize("numbers", [(0, 1, 4), (4, 0, 4), (4, 101, 4), (4, 1, 0)])
def test_numbers_that_make_no_sense_are_refused(trained, tmp_path, numbers):
    with pytest.raises(InputError, match="at least 1"):
        draw_experts(str(trained), str(tmp_path / "out"), *numbers, 0)
    assert not list(tmp_path.iterdir())
