import pytest

from dit_jax.cli import parse_experiment
from dit_jax.errors import InputError
from dit_jax.parallel.mesh import RECIPES, Parallel
from tests.training.tiny import write_config


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
