"""A checkpoint's contents are told from its metadata."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.parallel.mesh import Parallel
from dit_jax.storage import read_contents
from dit_jax.storage.report import as_dict, describe_array, print_contents, size
from dit_jax.upcycling import Copy, upcycle
from tests.storage import states

MESH = {"data": 1, "fsdp": 4, "expert": 1, "sequence": 1, "tensor": 2}
KERNEL = "blocks/layers/ffn/fc1/kernel"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    parallel = Parallel(data=1, fsdp=4, tensor=2)
    return states.save(folder, states.experiment(folder, hidden=256, parallel=parallel), parallel)


def test_contents(run):
    stored = read_contents(run)
    assert (stored.step, list(stored.items)) == (states.STEP, ["ema_0.9", "optimizer", "params"])
    params = stored.items["params"]
    kernel = params.arrays[KERNEL]
    assert (kernel.shape, kernel.dtype) == ((2, 256, 1024), np.float32)
    assert (kernel.chunk, kernel.chunks, kernel.bytes) == ((2, 64, 512), 8, 4 * 2 * 256 * 1024)
    assert kernel.spec == ((), ("fsdp",), ("tensor",)) and params.mesh == MESH
    assert params.bytes == sum(a.bytes for a in params.arrays.values())
    assert params.bytes < params.bytes_on_disk < 1.1 * params.bytes and params.files > 5
    moments = stored.items["optimizer"].arrays[f"0/mu/{KERNEL}"]
    assert moments == kernel
    assert stored.metadata["experiment"]["fields"]["model"]["fields"]["hidden"] == 256


def test_no_array_is_read(run):
    before = states.file_bytes("read")
    stored = read_contents(run)
    assert states.file_bytes("read") - before < 0.02 * sum(i.bytes for i in stored.items.values())


def test_weights_that_training_did_not_save(run, tmp_path):
    upcycle(run, str(tmp_path / "moe"), Copy(experts=4))
    stored = read_contents(str(tmp_path / "moe"))
    experts = stored.items["params"].arrays["blocks/layers/ffn/experts/fc1/kernel"]
    assert (experts.shape, experts.chunk) == ((2, 4, 256, 1024), (1, 4, 256, 1024))
    assert experts.spec is None and stored.items["params"].mesh is None
    assert stored.metadata["upcycled"]["method"]["class"].endswith("Copy")


def test_report(run, capsys):
    stored = read_contents(run)
    print_contents(stored)
    text = capsys.readouterr().out
    assert text.splitlines()[0] == f"{stored.path}: step 7"
    assert "; saved on fsdp=4 x tensor=2" in text
    line = "        kernel  [2, 256, 1024] float32, 2.10 MB in 8 parts of [2, 64, 512], divided "
    assert f"{line}(-, fsdp, tensor)" in text
    assert "  model: DiT\n    patch: 4\n    hidden: 256\n" in text and "shape: [8, 8, 1]" in text
    print_contents(stored, as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(as_dict(stored)))
    scalar = stored.items["optimizer"].arrays["0/count"]
    assert describe_array(scalar) == "[] int32, 4 B"
    assert [size(n) for n in (999, 1000, 2_500_000, 3 * 10**12)] == [
        "999 B",
        "1.00 kB",
        "2.50 MB",
        "3,000.00 GB",
    ]


def test_what_cannot_be_read_is_named(run, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        read_contents(str(tmp_path))
    broken = tmp_path / "run" / "checkpoints" / "3"
    (broken / "params").mkdir(parents=True)
    (broken / "params" / "_METADATA").write_text("{")
    with pytest.raises(InputError, match="checkpoints/3' cannot be read: "):
        read_contents(str(tmp_path / "run"))


def test_command(run):
    line = [sys.executable, "-m", "dit_jax", "inspect", run, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["items"]["params"]["mesh"] == MESH
    line[-2:] = ["nowhere"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
