"""The attention kernels compile for TPUs that are not there (libtpu's compiler is enough)."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("libtpu", reason="needs the TPU's compiler: make test-tpu")
ROOT = pathlib.Path(__file__).parents[2]


def compiled(folder, *options):
    """Results of the benchmark, which compiles forward and backward passes in one program."""
    command = [sys.executable, ROOT / "benchmarks" / "attention_tpu.py", "--out", folder, *options]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    del env["XLA_FLAGS"]  # A program for many devices would have no kernels.
    subprocess.run(command, check=True, cwd=ROOT, env=env)
    return json.loads(next(folder.glob("*.json")).read_text())["results"]


def check(rows):
    assert not [row for row in rows if "failed" in row]
    for row in rows:
        assert 0 < row["forward_kernels"] <= row["forward_all"], row
        assert 0 < row["backward_kernels"] <= row["backward_all"], row


def test_the_mechanisms_compile(tmp_path):
    rows = compiled(tmp_path, "--chips", "v5e", "--cases", "1024:64")
    assert {row["mechanism"] for row in rows} == {"full", "llsa", "pisa", "clear", "linear"}
    check(rows)


@pytest.mark.slow
def test_they_compile_for_every_chip(tmp_path):
    check(compiled(tmp_path, "--cases", "256:72", "4096:128"))


@pytest.mark.slow
def test_a_head_of_65536_tokens_fits(tmp_path):
    """And costs less than a tenth of splash attention's cycles, by the compiler's schedule."""
    rows = compiled(tmp_path, "--chips", "v6e", "--cases", "65536:64", "--mechanisms", "llsa")
    check(rows)
    full, llsa = rows
    assert 10 * llsa["forward_all"] < full["forward_all"]
    assert 10 * llsa["backward_all"] < full["backward_all"]
