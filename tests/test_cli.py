import pathlib

import pytest

from dit_jax.cli import one_line_errors, parse_experiment
from dit_jax.errors import InputError
from dit_jax.parallel.mesh import RECIPES, Parallel
from tests.training.tiny import write_config

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path):
    return str(write_config(tmp_path))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_whole_mesh(config, name):
    assert parse_experiment([config, "--parallel", name], "").parallel == RECIPES[name]
    assert parse_experiment([config, f"--parallel={name}"], "").parallel == RECIPES[name]


def test_sizes_change_a_recipe(config):
    args = [config, "--parallel", "fsdp+ep", "--parallel.expert", "16", "--training.steps", "3"]
    found = parse_experiment(args, "")
    assert found.parallel == Parallel(data=1, fsdp=-1, expert=16) and found.training.steps == 3


@pytest.mark.parametrize("args", [["--parallel", "fspd"], ["--parallel=fspd"], ["--parallel"]])
def test_an_unknown_recipe_is_refused_with_those_there_are(config, args):
    with pytest.raises(InputError, match="no --parallel '.*': choose one of ddp, fsdp, "):
        parse_experiment([config, *args], "")


def test_fields_of_an_optional_part_are_plain_options():
    args = [
        str(ROOT / "configs/digits.py"),
        "--sampling.guidance.scale",
        "3",
        "--evaluation.judge.epochs",
        "2",
    ]
    found = parse_experiment(args, "")
    assert found.sampling.guidance.scale == 3
    assert found.evaluation.judge.epochs == 2


def test_an_interruption_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted; a run goes on from its newest checkpoint\n"
