import dataclasses

import flax.linen as nn
import jax
import pytest

from dit_jax.data import Digits, Loader
from dit_jax.data.source import Source
from dit_jax.diffusion import (
    DDIM,
    DDPM,
    Autoguidance,
    ClassifierFree,
    Euler,
    Flow,
    Gaussian,
    Heun,
    Sampling,
)
from dit_jax.errors import InputError
from dit_jax.evaluation.options import Evaluation
from dit_jax.experiment import Experiment, RunFolder, Training, trajectory_differences
from dit_jax.latents import VAE, Cached
from dit_jax.layers.context import Context
from dit_jax.layers.mlp import Mlp
from dit_jax.models import DiT
from dit_jax.parallel.mesh import Parallel
from dit_jax.training.distillation import Distillation
from dit_jax.training.optimizer import AdamW, Cosine

TINY = DiT(patch=2, hidden=16, depth=1, heads=2, num_classes=10, learn_sigma=False)


@dataclasses.dataclass(frozen=True)
class FakeSource(Source):
    """Any shape and number of classes; it cannot be opened, and a check must not try."""

    size: tuple[int, int, int] = (8, 8, 1)
    classes: int = 10

    @property
    def shape(self):
        return self.size

    @property
    def num_classes(self):
        return self.classes

    def open(self, split="train"):
        raise AssertionError("a check opened the data")


def build(**changes):
    parts = {
        "model": TINY,
        "process": Flow(),
        "data": FakeSource(),
        "run": RunFolder("unset"),
        "sampling": Sampling(Euler(steps=2), ClassifierFree()),
    }
    return Experiment(**parts | changes)


class Pair(nn.Module):
    """Two channel mixers, one after the other."""

    first: nn.Module
    second: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, context: Context):
        return self.second(self.first(x, context)[0], context)


@dataclasses.dataclass(frozen=True)
class Distilled(Flow):
    """A process that holds a teacher."""

    teacher: nn.Module | None = None


def test_one_module_in_two_places_is_refused():
    mlp = Mlp()
    with pytest.raises(InputError, match="share weights") as error:
        build(model=TINY.clone(ffn=Pair(mlp, mlp)))
    message = str(error.value)
    assert "'model.ffn.first'" in message and "'model.ffn.second'" in message and "Mlp" in message


def test_one_module_in_two_parts_of_an_experiment_is_refused():
    with pytest.raises(InputError, match="'model' and 'process.teacher' are one DiT"):
        build(process=Distilled(teacher=TINY))
    with pytest.raises(InputError, match="'model.ffn' and 'process.teacher.ffn' are one Mlp"):
        build(process=Distilled(teacher=DiT(ffn=TINY.ffn)))


def test_a_shared_module_is_refused_by_replace_too():
    with pytest.raises(InputError, match="share weights"):
        dataclasses.replace(build(), process=Distilled(teacher=TINY))


def test_equal_modules_that_are_two_objects_are_accepted():
    experiment = build(model=TINY.clone(ffn=Pair(Mlp(), Mlp())))
    experiment.check()
    params = jax.eval_shape(
        experiment.model.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 8, 8, 1), float),
        jax.ShapeDtypeStruct((1,), float),
        {"label": jax.ShapeDtypeStruct((1,), "int32")},
    )
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert any("first" in name for name in names) and any("second" in name for name in names)


def test_shared_plain_configuration_is_no_matter():
    flow, options = Flow(), Evaluation()
    assert build(process=flow, evaluation=options) == build(process=flow, evaluation=options)


FITTING = {
    "flow": {},
    "gaussian, variance learned": {
        "model": TINY.clone(learn_sigma=True),
        "process": Gaussian(),
        "sampling": Sampling(DDPM(steps=10), ClassifierFree()),
    },
    "gaussian, variance fixed": {
        "process": Gaussian(variance="fixed_small"),
        "sampling": Sampling(DDIM(steps=10)),
    },
    "dead variance channels, as SiT": {"model": TINY.clone(learn_sigma=True)},
    "unconditional": {
        "model": TINY.clone(num_classes=0),
        "sampling": Sampling(Euler(steps=2)),
        "data": FakeSource(classes=0),
    },
    "unconditional on labelled data": {
        "model": TINY.clone(num_classes=0),
        "sampling": Sampling(Euler(steps=2)),
    },
    "cached latents": {"latents": Cached(VAE()), "data": FakeSource(size=(4, 4, 8))},
    "real digits": {"data": Digits()},
    "accumulation": {"training": Training(batch_size=12, accumulation=4)},
    "ema of 0": {"training": Training(ema=(0.0, 0.5))},
}


@pytest.mark.parametrize("name", FITTING)
def test_parts_that_fit_pass(name):
    build(**FITTING[name]).check()


MISFITS = {
    "patch": ({"model": TINY.clone(patch=3)}, "8 x 8.*3|3.*8 x 8|patch"),
    "width": ({"model": TINY.clone(hidden=18)}, "18"),
    "variance": (
        {"process": Gaussian(), "sampling": Sampling(DDPM(steps=10))},
        "needs 2 output channels and the model gives 1: set model.learn_sigma",
    ),
    "flow solver, gaussian process": (
        {"model": TINY.clone(learn_sigma=True), "process": Gaussian()},
        "Euler solves a Flow process, not Gaussian",
    ),
    "gaussian solver, flow process": (
        {"sampling": Sampling(DDPM(steps=10))},
        "DDPM solves a Gaussian process, not Flow",
    ),
    "too many classes": (
        {"data": FakeSource(classes=7)},
        "model has 10 classes and the data 7: set --model.num-classes 7",
    ),
    "unlabelled data": ({"data": FakeSource(classes=0)}, "10 classes and the data none: put"),
    "guidance without classes": (
        {"model": TINY.clone(num_classes=0)},
        "unconditional model has nothing to guide: set guidance=None",
    ),
    "grids without decoder": (
        {
            "latents": Cached(VAE()),
            "data": FakeSource(size=(4, 4, 8)),
            "run": RunFolder("unset", sample_every=10),
        },
        "sample grids need the weights of a decoder: set them in `latents`, or",
    ),
    "odd cached channels": ({"latents": Cached(VAE())}, "1 channels"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_parts_that_do_not_fit_are_named(name):
    changes, message = MISFITS[name]
    experiment = build(**changes)
    with pytest.raises(InputError, match=message):
        experiment.check()


@pytest.mark.parametrize("value", [0, -3])
@pytest.mark.parametrize(
    "option",
    [
        "training.steps",
        "training.batch_size",
        "training.accumulation",
        "run.log_every",
        "run.save_every",
        "run.keep",
        "run.keep_every",
    ],
)
def test_numbers_below_one_are_named(option, value):
    part, field = option.split(".")
    if (option, value) == ("run.keep_every", 0):
        pytest.skip("0 and None both mean none")
    kind = {"training": Training(), "run": RunFolder("unset")}[part]
    experiment = build(**{part: dataclasses.replace(kind, **{field: value})})
    flag = f"--{option}".replace("_", "-")
    with pytest.raises(InputError, match=f"{flag} is {value}: it must be at least 1"):
        experiment.check()


def test_accumulation_must_divide_the_batch():
    experiment = build(training=Training(batch_size=10, accumulation=4))
    with pytest.raises(InputError, match="accumulation 4 does not divide the batch of 10"):
        experiment.check()


@pytest.mark.parametrize("ema", [(), (1.0,), (-0.1,), (0.9, 1.5), (float("nan"),)])
def test_averages_outside_their_range_are_refused(ema):
    with pytest.raises(InputError, match=r"--training.ema .*\[0, 1\)"):
        build(training=Training(ema=ema)).check()


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": Evaluation(samples=10, batch_size=0)},
        {"evaluation": Evaluation(samples=-1)},
        {"run": RunFolder("unset", sample_every=-1)},
        {"training": Training(seed=-1)},
        {"sampling": Sampling(Euler(steps=2), Autoguidance())},
    ],
    ids=["evaluation batch", "evaluation samples", "sample_every", "seed", "autoguidance"],
)
def test_what_would_fail_hours_later_is_refused_now(changes):
    with pytest.raises(InputError):
        build(**changes).check()


def test_the_shape_is_that_of_the_latents():
    assert build().shape == (8, 8, 1)
    assert build(latents=Cached(VAE()), data=FakeSource(size=(4, 6, 8))).shape == (4, 6, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": RunFolder("elsewhere", save_every=3)},
        {"loader": Loader(workers=2)},
        {"parallel": Parallel(fsdp=2)},
        {"evaluation": Evaluation(samples=7)},
        {"sampling": Sampling(Heun(steps=9))},
        {"init_from": "elsewhere"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_does_not_change_the_trajectory_may_change(changes):
    assert build(**changes) != build()
    assert trajectory_differences(build(), build(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": TINY.clone(depth=3)}, ["model.depth: 1 -> 3"]),
        ({"process": Flow(shift=2.0)}, ["process.shift: 1.0 -> 2.0"]),
        ({"process": Gaussian()}, ["process: Flow -> Gaussian"]),
        ({"data": FakeSource(flip=True)}, ["data.flip: False -> True"]),
        ({"latents": Cached(VAE())}, ["latents: Pixels -> Cached"]),
        ({"training": Training(seed=1)}, ["training.seed: 0 -> 1"]),
        ({"distillation": Distillation("a")}, ["distillation.teacher: None -> 'a'"]),
        ({"training": Training(ema=(0.5,))}, ["training.ema.0: 0.9999 -> 0.5"]),
        (
            {"optimizer": AdamW(learning_rate=1.0, schedule=Cosine())},
            ["optimizer.learning_rate: 0.0001 -> 1.0", "optimizer.schedule: Constant -> Cosine"],
        ),
    ],
)
def test_what_changes_the_trajectory_is_listed(changes, expected):
    new = build(**changes, run=RunFolder("elsewhere"))
    assert trajectory_differences(build(), new) == expected
