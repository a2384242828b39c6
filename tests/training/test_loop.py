"""The loop around the step: what it logs, saves, refuses and never waits for."""

import json
import math
import os

import jax
import numpy as np
import pytest
from PIL import Image

import dit_jax
from dit_jax.checkpoint import Checkpoints
from dit_jax.data import ImageFolder
from dit_jax.diffusion import Gaussian
from dit_jax.errors import InputError, TrainingError
from dit_jax.evaluation.judge import SmallClassifier
from dit_jax.layers.mlp import Mlp
from dit_jax.run import load
from dit_jax.training.log import RunLog
from dit_jax.training.loop import train
from tests.training import tiny


def test_a_run_is_measured_while_it_trains(tmp_path):
    measured = {"every": 2, "every_samples": 8, "judge": SmallClassifier(hidden=(8, 4), epochs=1)}
    options = {f"evaluation__{name}": value for name, value in measured.items()}
    run = train(tiny.experiment(tmp_path, training__steps=4, **options))
    lines = [json.loads(line) for line in tiny.log_text(tmp_path).splitlines()]
    found = {line["step"]: line for line in lines if "frechet_distance" in line}
    assert found.keys() == {2, 4}
    folder = tmp_path / "evaluation" / "training"
    with Image.open(folder / "curve.png") as picture:
        assert picture.width > 500
    # The last ones are those of the averaged parameters that the run ends with.
    expected = dit_jax.sample(run, np.arange(8))
    with np.load(folder / "samples.npz") as archive:
        np.testing.assert_allclose(archive["arr_0"].astype(int), expected.astype(int), atol=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("fid",)}, "'fid' compares with a reference and there is none"),
        ({"metrics": ("is",), "every_samples": 1}, "at least 2"),
        ({"every_samples": 0, "held_out": 4}, "0 samples"),
        ({}, "nothing is measured"),
        ({"metrics": ("is",)}, "'weights/inception' holds no weights"),
    ],
)
def test_a_measurement_that_cannot_be_made_is_refused_at_once(tmp_path, options, message):
    options = {f"evaluation__{name}": value for name, value in options.items()}
    with pytest.raises(InputError, match=message):
        train(tiny.experiment(tmp_path / "run", evaluation__every=2, **options))
    assert not (tmp_path / "run").exists()


def test_a_run_leaves_log_checkpoints_tensorboard_and_grids(tmp_path):
    options = {"training__steps": 6, "run__save_every": 2, "run__sample_every": 3}
    run = train(tiny.experiment(tmp_path, **options, run__keep=2, run__keep_every=2))
    assert run.step == 6
    assert sorted(tiny.losses(tmp_path)) == [1, 2, 3, 4, 5, 6]
    values = json.loads(tiny.log_text(tmp_path).splitlines()[0])
    wanted = {"loss", "grad_norm", "update_norm", "param_norm", "images_per_second"}
    assert wanted <= values.keys() and all(map(math.isfinite, values.values()))
    assert Checkpoints(str(tmp_path)).steps() == [2, 4, 6]
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert load(str(tmp_path)).experiment == run.experiment


def test_metrics_are_read_once_a_step_and_one_step_late(tmp_path, monkeypatch):
    """Between steps, the loop reads the metrics of the step before from the device, and no more."""
    array = type(jax.numpy.zeros(()))
    real_value, real_get, real_call = array._value, jax.device_get, RunLog.advance
    reads, inside = [], []

    def value(self):
        if not inside:
            reads.append("stray")
        return real_value.fget(self)

    def get(tree):
        reads.append("metrics")
        inside.append(True)
        result = real_get(tree)
        inside.pop()
        return result

    monkeypatch.setattr(array, "_value", property(value))
    monkeypatch.setattr(jax, "device_get", get)
    monkeypatch.setattr(RunLog, "advance", lambda *a: reads.append(a[1]) or real_call(*a))
    train(tiny.experiment(tmp_path, training__steps=8, run__save_every=8, run__log_every=4))
    first, last = reads.index(1), reads.index(8)
    expected = [event for step in range(2, 9) for event in ("metrics", step)]
    assert reads[first + 1 : last + 1] == expected


def test_one_compilation_serves_the_whole_run(tmp_path):
    from dit_jax.training.trainer import Trainer

    trainer = Trainer(tiny.experiment(tmp_path, training__steps=4))
    state, compiled, after_a_step = trainer.state(), [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    for batch in trainer.batches(0):
        state, _ = trainer.step(state, batch)
        after_a_step.append(len(compiled))
    assert after_a_step[0] >= 1
    assert after_a_step == after_a_step[:1] * 4


def test_an_interrupted_call_can_be_made_again_at_once(tmp_path, monkeypatch):
    from dit_jax.training.trainer import Trainer

    real_step = Trainer.step

    def interrupted(trainer, state, batch):
        if int(state.step) == 2:  # The save of this step has only just begun.
            raise KeyboardInterrupt
        return real_step(trainer, state, batch)

    experiment = tiny.experiment(tmp_path, training__steps=4, run__save_every=2)
    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(experiment)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    monkeypatch.setattr(Trainer, "step", real_step)
    assert train(experiment).step == 4
    assert {step: len(found) for step, found in tiny.losses(tmp_path).items()} == dict.fromkeys(
        (1, 2, 3, 4), 1
    )


def test_keeps_the_newest(tmp_path):
    train(tiny.experiment(tmp_path, training__steps=8, run__save_every=2, run__keep=2))
    assert Checkpoints(str(tmp_path)).steps() == [6, 8]


def test_a_loss_that_is_not_a_number_stops_and_spares_the_checkpoints(tmp_path):
    folder = str(tmp_path)
    train(tiny.experiment(tmp_path, training__steps=4, run__save_every=2))
    before = load(folder, ema=None)
    options = {"training__steps": 12, "optimizer__learning_rate": 1e38, "run__save_every": 2}
    broken = tiny.experiment(tmp_path, **options, run__allow_changes=True)
    with pytest.raises(TrainingError, match=r"at step \d+ .*checkpoints/\d+\)"):
        train(broken)
    after = load(folder, ema=None)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
    kept = load(f"{folder}/checkpoints/4", ema=None)
    jax.tree.map(np.testing.assert_array_equal, before.params, kept.params)


def test_another_configuration_is_refused_unless_told(tmp_path):
    train(tiny.experiment(tmp_path, training__steps=2))
    changed = {"training__steps": 4, "model__depth": 2, "optimizer__learning_rate": 2e-3}
    with pytest.raises(InputError, match=r"training.steps: 2 -> 4") as error:
        train(tiny.experiment(tmp_path, **changed))
    assert "optimizer.learning_rate: 0.001 -> 0.002" in str(error.value)
    assert "depth" not in str(error.value)
    run = train(tiny.experiment(tmp_path, **changed, run__allow_changes=True))
    assert run.step == 4


def test_what_does_not_change_the_run_may_change(tmp_path):
    train(tiny.experiment(tmp_path, training__steps=2))
    same = tiny.experiment(tmp_path, training__steps=2, run__log_every=7, loader__workers=0)
    assert train(same).step == 2


def test_checkpoints_of_another_model_cannot_be_resumed(tmp_path):
    train(tiny.experiment(tmp_path, training__steps=2))
    wider = {"training__steps": 2, "model__hidden": 64, "run__allow_changes": True}
    with pytest.raises(InputError, match=r"another model or optimizer \(model.hidden: 32 -> 64\)"):
        train(tiny.experiment(tmp_path, **wider))
    assert load(str(tmp_path)).step == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training__batch_size": 12}, "does not divide over 8 devices"),
        ({"model__patch": 3}, "does not divide into patches of 3x3"),
        ({"model__num_classes": 7}, "the model has 7 classes and the data 10"),
        ({"process": Gaussian()}, "set model.learn_sigma"),
        ({"parallel__fsdp": 3}, "does not cover 8 devices"),
    ],
)
def test_bad_input_stops_before_anything_is_written(tmp_path, change, message):
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=message):
        train(tiny.experiment(folder, **change))
    assert not folder.exists()


def test_a_class_from_elsewhere_stops_before_anything_is_written(tmp_path):
    class Elsewhere(Mlp):
        pass

    with pytest.raises(InputError, match="Elsewhere of 'tests.training.test_loop'"):
        train(tiny.experiment(tmp_path / "run", model__ffn=Elsewhere()))
    assert not (tmp_path / "run").exists()


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    data = ImageFolder(str(tmp_path / "images"), size=8)
    with pytest.raises(InputError, match="images"):
        train(tiny.experiment(tmp_path / "run", data=data))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_corrupt_jpeg_among_good_ones(tmp_path, policy):
    rng = np.random.default_rng(0)
    for label in range(2):
        folder = tmp_path / "images" / str(label)
        folder.mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 255, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
    bad = tmp_path / "images" / "1" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:60])
    options = {"training__steps": 2, "training__batch_size": 16, "model__num_classes": 2}
    data = ImageFolder(str(tmp_path / "images"), size=8, on_error=policy)
    experiment = tiny.experiment(tmp_path / "run", data=data, **options)
    if policy == "skip":
        assert train(experiment).step == 2
    else:
        with pytest.raises(InputError, match=r"1/3\.jpg"):
            train(experiment)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        train(tiny.experiment(tmp_path / "file" / "run"))


def test_an_unfinished_log_line_is_dropped(tmp_path):
    train(tiny.experiment(tmp_path, training__steps=2))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    longer = tiny.experiment(tmp_path, training__steps=4, run__allow_changes=True)
    train(longer)
    assert sorted(tiny.losses(tmp_path)) == [1, 2, 3, 4]


def test_load_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        dit_jax.load(str(tmp_path / "nothing"))
    assert os.listdir(tmp_path) == []
    train(tiny.experiment(tmp_path, training__steps=2))
    with pytest.raises(InputError, match=r"no EMA of decay 0\.5"):
        load(str(tmp_path), ema=0.5)


def test_a_loaded_run_predicts_and_samples(tmp_path):
    train(tiny.experiment(tmp_path, training__steps=2))
    run = dit_jax.load(str(tmp_path))
    x, t = np.zeros((3, *run.shape), np.float32), np.full(3, 0.5, np.float32)
    label = {"label": np.array([1, 2, 3], np.int32)}
    prediction = run.model.apply({"params": run.params}, x, t, label).prediction
    assert prediction.shape == x.shape
    images = dit_jax.sample(run, [1, 2, 3], seed=0)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
