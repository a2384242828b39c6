import json
import os
import pathlib
import subprocess
import sys

import pytest

from dit_jax.errors import InputError
from dit_jax.planning import topology
from dit_jax.planning.topology import find_slice

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "from tests.planning.small import experiment\n\nexperiment = experiment()\n"


def run(*args, **environment):
    return subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        env=os.environ | environment | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.mark.parametrize("name", ["v5q:4x4", "v5e", "v5e:", "v5e:4xx4", "v5e:axb", ""])
def test_names_that_are_no_topology(name):
    with pytest.raises(InputError, match="no topology"):
        find_slice(name)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install libtpu"):
        find_slice("v5e:4x4")


def test_errors_are_one_line(config):
    for args in (
        ("no.py", "--topology", "v5e:2x2"),
        (config, "--topology", "v9:2x2"),
    ):
        found = run("-m", "dit_jax", "plan", *args)
        assert found.returncode == 2
        assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1


def test_an_unknown_option_of_the_configuration_is_named(config):
    found = run(
        "-m", "dit_jax", "plan", config, "--topology", "v5e:2x2", "--training.bath-size", "8"
    )
    assert found.returncode == 2 and "--training.batch-size" in found.stderr + found.stdout


def test_compile_only_compiles_for_the_devices_at_hand(config, tmp_path):
    found = run("train.py", config, "--compile-only", "--parallel.fsdp", "8")
    assert found.returncode == 0, found.stderr
    assert "8 devices, fsdp=8" in found.stdout and "temporaries" in found.stdout
    assert not (ROOT / "nowhere").exists()


def test_the_real_compiler(config):
    pytest.importorskip("libtpu")
    args = ("--topology", "v5e:2x4", "--parallel", "fsdp", "--json")
    found = run("-m", "dit_jax", "plan", config, *args)
    assert found.returncode == 0, found.stderr
    plan = json.loads(found.stdout)
    assert plan["mesh"] == {"data": 1, "fsdp": 8, "expert": 1, "sequence": 1, "tensor": 1}
    assert plan["verdict"]["fits"] and 0 < plan["mfu"] < 1
    assert plan["compiled"]["memory"]["total"] > sum(plan["state"].values())
    assert {tuple(c["axes"]) for c in plan["exchanged"]} == {("fsdp",)}
    assert plan["unknown_loops"] == 0


def test_the_real_compiler_refuses_what_is_too_large(config):
    pytest.importorskip("libtpu")
    large = ("--model.hidden", "4096", "--model.depth", "40", "--model.heads", "32")
    found = run("-m", "dit_jax", "plan", config, "--topology", "v5e:2x2", *large)
    assert found.returncode == 1, found.stderr
    assert "does not fit, by at least" in found.stdout and "--parallel.fsdp 4" in found.stdout
