"""Training with a teacher: the terms are their formulas, and the run around them is exact."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax import cli
from dit_jax.attention import CLEAR, LiT
from dit_jax.diffusion import Flow, Gaussian, LogitNormal
from dit_jax.errors import InputError
from dit_jax.latents import Pixels
from dit_jax.layers.taps import COLLECTION, attention_outputs
from dit_jax.models import DiT
from dit_jax.models.inputs import example_inputs
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.run import load
from dit_jax.training.distillation import Distillation, Taught
from dit_jax.training.loop import train
from dit_jax.training.state import new_state, state_shardings
from dit_jax.training.step import make_loss, make_step
from dit_jax.training.trainer import Trainer
from tests.training import tiny

SHAPE = (8, 8, 1)
TEACHER = DiT(patch=4, hidden=32, depth=3, heads=4, num_classes=10)
STUDENT = TEACHER.clone(heads=2, attention=LiT(kernel=3), label_dropout=0.5)
OPTIONS = Distillation("unused", prediction=0.7, variance=0.3, attention=0.2, attention_every=2)
OPTIMIZER = optax.adamw(1e-2)


def random_params(model, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, *example_inputs(SHAPE))["params"]
    return jax.tree.map(lambda s: np.float32(0.2 * rng.normal(size=s.shape)), shapes)


def example(size=8):
    rng = np.random.default_rng(5)
    x0, noise = rng.normal(size=(2, size, *SHAPE)).astype(np.float32)
    t = rng.integers(0, 1000, size).astype(np.float32) / 1000
    return {"x0": x0, "noise": noise, "t": t, "condition": {"label": np.arange(size) % 10}}


@functools.cache
def compiled(student=STUDENT, process=None):
    """Loss, metrics and gradients in the parameters of both; another teacher needs no compiling."""
    process = process or Gaussian()

    def loss(params, teacher_params, key):
        taught = Taught(student, TEACHER, teacher_params, OPTIONS, process)
        return make_loss(taught, process)(params, example(), key)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


@functools.cache
def naive(process):
    """The same terms from separate calls of the models, for labels that are given."""

    def loss(params, teacher_params, label):
        e = example()
        x, condition = process.corrupt(e["x0"], e["noise"], e["t"]), {"label": label}
        outputs = [
            model.apply({"params": p}, x, process.model_time(e["t"]), condition, mutable=COLLECTION)
            for model, p in ((STUDENT, params), (TEACHER, teacher_params))
        ]
        (own, own_tapped), (wanted, wanted_tapped) = outputs
        difference = own.prediction - wanted.prediction
        layers = attention_outputs(own_tapped) - attention_outputs(wanted_tapped)
        terms = {
            "teacher_prediction_loss": 0.7 * jnp.mean(difference[..., :1] ** 2),
            "teacher_variance_loss": 0.3 * jnp.mean(difference[..., 1:] ** 2),
            "teacher_attention_loss": 0.2 * (jnp.mean(layers[0] ** 2 + layers[2] ** 2)) / 2,
        }
        if isinstance(process, Flow):
            del terms["teacher_variance_loss"]
        plain = process.loss(own.prediction, e["x0"], e["noise"], e["t"])[0].mean()
        return plain + sum(terms.values()), terms

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def assert_close(found, wanted):
    # Equal sums in two programs.
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5)
    jax.tree.map(close, found, wanted)


@pytest.mark.parametrize("process", [Gaussian(), Flow()], ids=["variance", "no variance"])
def test_terms_are_those_of_separate_calls(process):
    params, teacher_params = random_params(STUDENT), random_params(TEACHER, 1)
    key = jax.random.key(3)
    dropped = jax.random.uniform(jax.random.split(key)[0], (8,)) < 0.5
    assert 0 < dropped.sum() < 8
    label = jnp.where(dropped, 10, example()["condition"]["label"])
    (loss, metrics), gradients = compiled(process=process)(params, teacher_params, key)
    (wanted, terms), wanted_gradient = naive(process)(params, teacher_params, label)
    assert {name for name in metrics if name.startswith("teacher_")} == set(terms)
    assert_close((loss, {name: metrics[name] for name in terms}), (wanted, terms))
    assert_close(gradients[0], wanted_gradient)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients[1]))


def test_its_equal_teaches_nothing():
    """Both are told the same labels, dropped ones included."""
    params = random_params(TEACHER)
    run = compiled(TEACHER.clone(label_dropout=0.5))
    (_, metrics), _ = run(params, params, jax.random.key(0))
    terms = [value for name, value in metrics.items() if name.startswith("teacher_")]
    assert len(terms) == 3 and max(terms) < 1e-9


def run_steps(devices=None, parallel=Parallel(), accumulation=1):  # noqa: B008
    """Losses of three steps under a teacher, on a mesh."""
    model = STUDENT.clone(label_dropout=0.0)  # Parts of a batch would draw their own.
    layout = Layout(parallel.mesh(devices))
    key, *inputs = example_inputs(SHAPE)

    def init():
        return new_state(model.init(key, *inputs)["params"], OPTIMIZER, (0.9,))

    shardings = state_shardings(layout, OPTIMIZER, jax.eval_shape(init))
    teacher_params = random_params(TEACHER, 1)
    teacher_shardings = layout.parameters(teacher_params)
    step = make_step(
        model,
        Gaussian(),
        Pixels(),
        OPTIMIZER,
        accumulation=accumulation,
        seed=0,
        layout=layout,
        distillation=OPTIONS,
        teacher=TEACHER,
    )
    step = jax.jit(
        step,
        in_shardings=(shardings, layout.batch, layout.replicated, teacher_shardings),
        out_shardings=(shardings, layout.replicated),
    )
    state = jax.jit(init, out_shardings=shardings)()
    losses = []
    for i in range(3):
        rng = np.random.default_rng(i)
        batch = {"image": rng.integers(0, 256, (16, *SHAPE), np.uint8)}
        batch["label"] = rng.integers(0, 10, 16).astype(np.int32)
        state, metrics = step(state, batch, {}, teacher_params)
        losses.append([metrics["loss"], metrics["teacher_attention_loss"]])
    return np.array(losses)


@functools.cache
def on_one_device():
    return run_steps(tuple(jax.devices()[:1]))


@pytest.mark.parametrize(
    ("parallel", "accumulation"), [(Parallel(data=2, fsdp=2, tensor=2), 1), (Parallel(), 2)]
)
def test_any_mesh_and_any_parts_give_the_losses_of_one_device(parallel, accumulation):
    found = run_steps(parallel=parallel, accumulation=accumulation)
    # Sums run in another order on another mesh.
    np.testing.assert_allclose(found, on_one_device(), rtol=1e-5)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    train(tiny.experiment(folder, training__steps=4, run__save_every=2))
    return folder


def distilled(folder, dense, **options):
    settings = {"init_from": str(dense), "run__save_every": 3, "training__steps": 6}
    settings |= {"model__attention": LiT(kernel=3), "model__heads": 1}
    settings |= {"distillation": Distillation(str(dense), attention=0.5, attention_every=1)}
    return tiny.experiment(folder, **settings | options)


@pytest.fixture(scope="module")
def linear(dense, tmp_path_factory):
    """A linear student of the dense run."""
    folder = tmp_path_factory.mktemp("linear")
    train(distilled(folder, dense))
    return folder


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def test_all_but_attention_is_inherited(dense, tmp_path):
    state = Trainer(distilled(tmp_path / "run", dense)).state()
    found, there = by_path(state.params), by_path(load(str(dense)).params)
    fresh = {path for path in found if "/attention/" in path}
    assert fresh >= {"blocks/layers/attention/qkv/kernel", "blocks/layers/attention/out/kernel"}
    assert found.keys() - fresh == {path for path in there if "/attention/" not in path}
    for path in found.keys() - fresh:
        np.testing.assert_array_equal(found[path], there[path])


def test_of_the_same_heads_attentions_projections_are_inherited_too(dense, tmp_path):
    state = Trainer(distilled(tmp_path / "run", dense, model__heads=2)).state()
    found, there = by_path(state.params), by_path(load(str(dense)).params)
    assert found.keys() - there.keys() == {"blocks/layers/attention/mixer/conv_kernel"}
    for path, leaf in there.items():
        np.testing.assert_array_equal(found[path], leaf)


def test_a_run_logs_its_terms_and_its_checkpoint_names_the_teachers(linear, dense):
    assert "teacher_prediction_loss" in tiny.log_text(linear)
    assert "teacher_attention_loss" in tiny.log_text(linear)
    assert "teacher_variance_loss" not in tiny.log_text(linear)  # This process learns none.
    run = load(str(linear))
    assert run.experiment.distillation.teacher == str(dense / "checkpoints" / "4")
    moved = by_path(run.params)["blocks/layers/attention/mixer/conv_kernel"]
    assert np.abs(moved).max() > 0


def test_a_resumed_run_is_the_same_run(linear, dense, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(linear, folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    train(distilled(folder, dense))
    assert tiny.losses(folder).keys() == set(range(1, 7))
    for found, *again in tiny.losses(folder).values():
        assert again in ([], [found])
    tiny.assert_same_run(folder, linear)


def test_a_teacher_that_went_on_is_another_teacher(linear, dense, tmp_path):
    older = Distillation(str(dense / "checkpoints" / "2"), attention=0.5, attention_every=1)
    shutil.copytree(linear, tmp_path / "run")
    with pytest.raises(InputError, match=r"distillation.teacher: '.*/4' -> '.*/2'"):
        Trainer(distilled(tmp_path / "run", dense, distillation=older))


def test_the_teachers_parameters_lie_as_a_models(dense, tmp_path):
    trainer = Trainer(distilled(tmp_path, dense, parallel=Parallel(fsdp=8)))
    kernel = trainer.teacher.params["blocks"]["layers"]["ffn"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "nowhere"}, "'nowhere' holds no checkpoint"),
        ({"teacher": None}, "set --distillation.teacher"),
        ({"attention": -1.0}, "must not be negative"),
        ({"prediction": 0.0, "attention": 0.0}, "compares nothing"),
        ({"attention_every": 0}, "attention-every is 0"),
        ({"process": Flow(prediction="noise")}, "process.prediction: 'velocity' -> 'noise'"),
        ({"process": Flow(data_time=1)}, "process.data_time: 0 -> 1"),
        ({"model__num_classes": 0, "sampling__guidance": None}, "classes: 10 there, 0 here"),
        ({"model__depth": 3}, r"attention \[L, B, N, D\]: \(2, 1, 16, 32\) there, \(3, 1, 16"),
    ],
)
def test_a_teacher_that_cannot_teach_stops_before_anything_is_written(
    dense, tmp_path, change, message
):
    experiment = distilled(tmp_path / "run", dense)
    teaching = {f.name for f in dataclasses.fields(Distillation)} & change.keys()
    options = dataclasses.replace(
        experiment.distillation, **{name: change[name] for name in teaching}
    )
    others = {name: value for name, value in change.items() if name not in teaching}
    with pytest.raises(InputError, match=message) as error:
        Trainer(distilled(tmp_path / "run", dense, distillation=options, **others))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_times_may_be_drawn_in_another_way_and_mechanisms_may_differ(dense, tmp_path):
    process = Flow(time=LogitNormal(), shift=2.0)
    local = {"model__attention": CLEAR(radius=2, tile=(2, 2)), "model__heads": 2}
    assert Trainer(distilled(tmp_path, dense, process=process, **local)).teacher.step == 4


def test_it_is_set_on_the_command_line(tmp_path):
    args = [str(tiny.write_config(tmp_path)), "--distillation.teacher", "runs/dense"]
    args += ["--distillation.attention", "0.5", "--distillation.attention-every", "2"]
    wanted = Distillation("runs/dense", attention=0.5, attention_every=2)
    assert cli.parse_experiment(args, "unused").distillation == wanted
