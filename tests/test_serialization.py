import dataclasses
import json
import pathlib
import runpy

import flax.linen as nn
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dit_jax import serialization
from dit_jax.attention import Full
from dit_jax.diffusion import GVP, VP, ClassifierFree, Flow, Gaussian, Heun, Linear, LogitNormal
from dit_jax.errors import InputError
from dit_jax.experiment import RunFolder, Training
from dit_jax.layers.mlp import Mlp
from dit_jax.models import DiT
from dit_jax.training.optimizer import AdamW, Constant, Cosine

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def round_trip(value):
    """Through text, as a checkpoint does it."""
    return serialization.from_json(json.loads(json.dumps(serialization.to_json(value))))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_survives_the_round_trip(path):
    experiment = runpy.run_path(str(path))["experiment"]
    read = round_trip(experiment)
    assert read == experiment
    assert not serialization.differences(read, experiment)
    for name in ("model", "latents"):  # Jitted functions take these as static.
        assert hash(getattr(read, name, None)) == hash(getattr(experiment, name, None))


def test_changed_trees_keep_their_changes():
    path = next(path for path in CONFIGS if path.stem == "digits")
    experiment = runpy.run_path(str(path))["experiment"]
    changed = dataclasses.replace(
        experiment,
        model=experiment.model.clone(depth=7, ffn=Mlp(ratio=2.5)),
        process=Gaussian(steps=100, variance="fixed_small"),
        training=dataclasses.replace(experiment.training, ema=(0.9, 0.99, 0.999)),
        init_from="runs/another",
    )
    read = round_trip(changed)
    assert read == changed != experiment
    assert read.model.ffn.ratio == 2.5 and read.training.ema == (0.9, 0.99, 0.999)


finite = st.floats(allow_nan=False, allow_infinity=False)
models = st.builds(
    DiT,
    patch=st.integers(1, 8),
    hidden=st.integers(),
    num_classes=st.integers(0, 2000),
    label_dropout=finite,
    learn_sigma=st.booleans(),
    ffn=st.builds(Mlp, ratio=finite | st.integers(-(2**40), 2**40)),
    remat=st.sampled_from(["none", "dots", "full"]),
)
flows = st.builds(
    Flow,
    path=st.sampled_from([Linear(), GVP(), VP()]),
    prediction=st.sampled_from(["velocity", "noise", "x0", "score"]),
    time=st.builds(LogitNormal, mean=finite, std=finite),
    shift=finite,
)
optimizers = st.builds(
    AdamW,
    learning_rate=finite,
    schedule=st.builds(Cosine, warmup=st.integers(), final=finite) | st.builds(Constant),
    clip_norm=st.none() | finite,
)
trainings = st.builds(Training, steps=st.integers(), ema=st.lists(finite).map(tuple))
folders = st.builds(
    RunFolder, dir=st.text(), keep_every=st.none() | st.integers(), allow_changes=st.booleans()
)
guidances = st.builds(
    ClassifierFree, finite, st.tuples(finite, finite), channels=st.none() | st.integers()
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(models | flows | optimizers | trainings | folders | guidances)
def test_any_field_value_survives_the_round_trip(value):
    read = round_trip(value)
    assert read == value and type(read) is type(value)
    assert repr(round_trip(read)) == repr(read)  # Bits and types too, once they are settled.


@pytest.mark.parametrize(
    ("value", "get"),
    [
        (Mlp(ratio=4), lambda read: read.ratio),
        (AdamW(clip_norm=1), lambda read: read.clip_norm),
        (Training(ema=(0, 0.5)), lambda read: read.ema[0]),
        (ClassifierFree(2, (0, 1)), lambda read: read.interval[1]),
    ],
    ids=["float", "float or None", "tuple of any length", "pair"],
)
def test_integers_in_float_fields_are_read_as_floats(value, get):
    """4 and 4.0 are equal and hash alike, so nothing but the annotation can tell them apart."""
    assert type(get(value)) is int or type(get(value)) is not float
    assert type(get(round_trip(value))) is float
    assert round_trip(value) == value


def test_integers_and_booleans_stay_what_they_are():
    read = round_trip(RunFolder("x", keep_every=4, allow_changes=True))
    assert type(read.keep_every) is int and read.allow_changes is True
    assert type(round_trip(Heun(steps=4)).steps) is int
    assert round_trip(AdamW(clip_norm=None)).clip_norm is None


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "dit_jaxx.evil",
        "dit_jaxx.models.DiT",
        "dit_jax",
        "eval",
        "",
        "flax.linen.Dense",
    ],
)
def test_foreign_classes_are_refused(name):
    with pytest.raises(InputError, match="not a class of dit_jax"):
        serialization.from_json({"class": name, "fields": {}})


@pytest.mark.parametrize(
    "name",
    [
        "dit_jax.models.dit.DoT",
        "dit_jax.models.nowhere.DiT",
        "dit_jax.serialization.importlib",  # A module that dit_jax imports.
        "dit_jax.serialization.to_json",
        "dit_jax.errors.InputError",
        "dit_jax.models.dit.math.prod",
    ],
)
def test_what_is_no_configuration_class_is_refused(name):
    with pytest.raises(InputError, match="which this version of dit_jax lacks") as error:
        serialization.from_json({"class": name, "fields": {}})
    assert name in str(error.value)


def test_refusal_comes_before_anything_foreign_is_imported(tmp_path, monkeypatch):
    (tmp_path / "dit_jax_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("dit_jax_evil.A", "evil.A"):
        with pytest.raises(InputError):
            serialization.from_json({"class": name, "fields": {}})
    assert not (tmp_path / "ran").exists()


def test_unknown_fields_name_the_nearest():
    tree = serialization.to_json(DiT(depth=2))
    tree["fields"]["dept"] = 3
    with pytest.raises(InputError, match="DiT has no field 'dept': perhaps 'depth'"):
        serialization.from_json(tree)
    tree = serialization.to_json(Mlp())
    tree["fields"]["zzz"] = 3
    with pytest.raises(InputError, match="Mlp has no field 'zzz'$"):
        serialization.from_json(tree)


def test_a_modules_parent_and_name_are_no_fields():
    assert set(serialization.to_json(Mlp(name="one"))["fields"]) == {"ratio"}
    with pytest.raises(InputError, match="no field 'parent'"):
        serialization.from_json(
            {"class": "dit_jax.layers.mlp.Mlp", "fields": {"ratio": 4.0, "parent": None}}
        )


def test_missing_required_fields_are_bad_input():
    with pytest.raises(InputError, match="dir"):
        serialization.from_json({"class": "dit_jax.experiment.RunFolder", "fields": {}})


@pytest.mark.parametrize(
    "tree",
    [
        {"class": 5, "fields": {}},
        {"class": "dit_jax.layers.mlp.Mlp", "fields": 3},
        {"class": "dit_jax.layers.mlp.Mlp"},
        {"ratio": 4.0},
        {},
    ],
)
def test_malformed_objects_are_bad_input(tree):
    with pytest.raises(InputError):
        serialization.from_json(tree)


def test_missing_fields_with_defaults_take_them():
    """A checkpoint from before a field existed can be read."""
    read = serialization.from_json({"class": "dit_jax.models.dit.DiT", "fields": {"depth": 3}})
    assert read == DiT(depth=3)


@dataclasses.dataclass(frozen=True)
class Foreign:
    value: int = 0


class ForeignModule(nn.Module):
    pass


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {"a": 1},
        {1},
        b"bytes",
        1j,
        np.float32(1),
        np.zeros(2),
        len,
        Mlp,
        pathlib.Path("x"),
        Foreign(),
        ForeignModule(),
        (1, (2, [3])),
        DiT(ffn=ForeignModule()),
        Training(ema=[0.9]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_could_not_be_read_back_are_refused(value):
    with pytest.raises(InputError, match="a configuration cannot hold"):
        serialization.to_json(value)


def test_a_class_from_elsewhere_is_named_in_one_line():
    with pytest.raises(InputError, match="ForeignModule of '.*test_serialization'") as caught:
        serialization.to_json(DiT(ffn=ForeignModule()))
    assert "into a file of the dit_jax package" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_differences_name_the_path_and_both_values():
    a = DiT(depth=2, ffn=Mlp(ratio=4.0))
    b = DiT(depth=3, ffn=Mlp(ratio=2.0))
    assert serialization.differences(a, b) == ["depth: 2 -> 3", "ffn.ratio: 4.0 -> 2.0"]
    assert serialization.differences(b, a, "model") == [
        "model.depth: 3 -> 2",
        "model.ffn.ratio: 2.0 -> 4.0",
    ]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (Training(ema=(0.9, 0.5)), Training(ema=(0.9, 0.6)), ["ema.1: 0.5 -> 0.6"]),
        (Training(ema=(0.9,)), Training(ema=(0.9, 0.6)), ["ema: (0.9,) -> (0.9, 0.6)"]),
        (Training(ema=()), Training(ema=(0.9,)), ["ema: () -> (0.9,)"]),
        (AdamW(schedule=Constant()), AdamW(schedule=Cosine()), ["schedule: Constant -> Cosine"]),
        (AdamW(clip_norm=None), AdamW(clip_norm=1.0), ["clip_norm: None -> 1.0"]),
        (RunFolder("a"), RunFolder("b"), ["dir: 'a' -> 'b'"]),
        (Mlp(ratio=4), Mlp(ratio=4.0), []),
        (Full(), Full(), []),
    ],
)
def test_differences_of_each_kind(a, b, expected):
    assert serialization.differences(a, b) == expected
