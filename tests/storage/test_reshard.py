"""The same bits in other parts."""

import functools
import math
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import dit_jax
from dit_jax.checkpoint import Checkpoints
from dit_jax.errors import InputError, TrainingError
from dit_jax.interop.engine import by_path
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.run import load
from dit_jax.storage import read_contents, reshard
from dit_jax.storage.chunks import choose_chunks
from dit_jax.storage.copying import copy_parts
from dit_jax.training.loop import train
from dit_jax.upcycling import Copy, upcycle
from tests.storage import states
from tests.training import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that eight devices saved."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return states.save(folder, states.experiment(folder), Parallel(data=1, fsdp=8))


def files_of(folder):
    """Contents of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "parallel",
    [Parallel(), Parallel(fsdp=2), Parallel(fsdp=32), Parallel(fsdp=4, tensor=8), Parallel(16)],
    ids=str,
)
def test_bits_stay_and_every_shard_is_made_of_whole_parts(run, tmp_path, parallel):
    out = str(tmp_path / "out")
    reshard(run, out, parallel)
    assert states.stored_bits(out) == states.stored_bits(run)
    stored = read_contents(out)
    places = by_path(Layout(parallel.abstract()).parameters(load(out).params))
    for path, array in stored.items["params"].arrays.items():
        shard = places[path].shard_shape(array.shape)
        assert all(size % part == 0 for size, part in zip(shard, array.chunk)), path
    assert stored.metadata["resharded"]["mesh"]["fsdp"] == parallel.fsdp


def test_small_parts_are_joined(run, tmp_path):
    """Eight devices wrote eight parts of each array; two read two, or one of what both need."""
    reshard(run, str(tmp_path / "out"), Parallel(fsdp=2))
    for array in read_contents(run).items["params"].arrays.values():
        assert array.chunks == 8
    for array in read_contents(str(tmp_path / "out")).items["params"].arrays.values():
        assert array.chunks in (1, 2)
    assert array.chunks == 2


def test_the_source_is_not_touched_and_any_mesh_restores_the_result(run, tmp_path):
    before = files_of(pathlib.Path(run))
    out = tmp_path / "out"
    lines = reshard(run, str(out), Parallel(fsdp=2))
    assert lines[0] == f"{run}/checkpoints/7, step 7" and len(lines) == 4
    assert files_of(pathlib.Path(run)) == before
    for count, parallel in ((1, Parallel()), (8, Parallel(data=1, fsdp=4, tensor=2))):
        shapes = states.abstract(states.experiment(out), parallel, jax.devices()[:count])
        states.assert_is_the_state(Checkpoints(str(out)).restore_newest(shapes))


def test_what_is_left_out_is_no_longer_the_runs(run, tmp_path):
    averaged, raw = str(tmp_path / "averaged"), str(tmp_path / "raw")
    reshard(run, averaged, items=["ema_0.9"])
    reshard(run, raw, items=["params"])
    for out, ema in ((averaged, "first"), (raw, None)):
        expected = load(run, ema).params
        jax.tree.map(np.testing.assert_array_equal, load(out).params, expected)
    assert read_contents(averaged).items.keys() == {"ema_0.9"}
    assert load(raw).experiment.training.ema == ()
    with pytest.raises(InputError, match="has no 'params': it has ema_0.9"):
        load(averaged, None)
    with pytest.raises(TrainingError, match="can be resumed from"):
        shapes = states.abstract(states.experiment(raw), Parallel(), jax.devices()[:1])
        Checkpoints(raw).restore_newest(shapes)
    assert not os.path.exists(f"{averaged}/experiment.json")


def test_a_resharded_run_goes_on_as_if_nothing_had_happened(tmp_path):
    options = {"training__steps": 4, "run__save_every": 2, "parallel": Parallel(data=2, fsdp=4)}
    whole = train(tiny.experiment(tmp_path / "whole", **options))
    half = f"{tmp_path}/whole/checkpoints/2"
    reshard(half, str(tmp_path / "half"), Parallel(fsdp=2))
    resumed = train(tiny.experiment(tmp_path / "half", **options))
    assert resumed.step == whole.step == 4
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert sorted(tiny.losses(tmp_path / "half")) == [3, 4]
    with pytest.raises(InputError, match="holds a run of another configuration"):
        train(tiny.experiment(tmp_path / "half", **options | {"training__steps": 6}))


def test_weights_that_training_did_not_save(run, tmp_path):
    upcycle(run, str(tmp_path / "moe"), Copy(experts=4))
    reshard(str(tmp_path / "moe"), str(tmp_path / "out"), Parallel(expert=4))
    arrays = read_contents(str(tmp_path / "out")).items["params"].arrays
    assert arrays["blocks/layers/ffn/experts/fc1/kernel"].chunk == (2, 1, 32, 128)
    assert dit_jax.sample(load(str(tmp_path / "out")), [3]).shape == (1, 8, 8, 1)


def test_modules_that_are_no_runs_keep_their_parts(tmp_path):
    weights = Checkpoints(str(tmp_path / "vae"))
    leaf = jax.ShapeDtypeStruct((4, 6), jax.numpy.bfloat16)
    items = {"params": {"kernel": leaf}, "carried": {"one.two": leaf}}
    weights.reserve(items, {"module": {}, "carried": ["one.two"]})
    for item, path in (("params", "kernel"), ("carried", "one.two")):
        weights.array(0, item, path, leaf).write(np.ones((4, 6), leaf.dtype)).result()
    reshard(str(tmp_path / "vae"), str(tmp_path / "out"), Parallel(fsdp=2))
    found = Checkpoints(str(tmp_path / "out"))
    array = found.array(0, "carried", "one.two")
    assert (array.read().result() == 1).all() and array.dtype.name == "bfloat16"
    assert found.metadata(0)["carried"] == ["one.two"]
    reshard(str(tmp_path / "vae"), str(tmp_path / "params"), items=["params"])
    assert "carried" not in Checkpoints(str(tmp_path / "params")).metadata(0)


def test_memory_holds_parts_and_not_arrays(run, tmp_path, monkeypatch):
    """What is copied at once is no larger than the limit, or than one part as it is."""
    sizes, limit = [], 1024

    def counting(parts):
        copy_parts(sizes.append(old.size * 4) or (old, new) for old, new in parts)

    small = functools.partial(choose_chunks, target_bytes=limit)
    monkeypatch.setattr("dit_jax.storage.rewriting.choose_chunks", small)
    monkeypatch.setattr("dit_jax.storage.rewriting.copy_parts", counting)
    reshard(run, str(tmp_path / "out"), Parallel())
    items = read_contents(run).items.values()
    parts = [math.prod(a.chunk) * 4 for item in items for a in item.arrays.values()]
    assert max(sizes) <= max(*parts, limit) < max(a.bytes for i in items for a in i.arrays.values())
    assert sum(sizes) == sum(item.bytes for item in items)  # Nothing is read twice.


def test_requests_that_do_not_fit_are_refused(run, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match="has no 'ema_0.5': it has ema_0.9, optimizer, params"):
        reshard(run, out, items=["ema_0.5"])
    with pytest.raises(InputError, match="'heads' of size 8 does not divide over 3 devices"):
        reshard(run, out, Parallel(tensor=3))
    with pytest.raises(InputError, match="--parallel.fsdp 0: it must be at least 1"):
        reshard(run, out, Parallel(fsdp=0))
    with pytest.raises(InputError, match="is there already"):
        reshard(run, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(run, tmp_path, monkeypatch):
    def refuse(parts):
        next(iter(parts))
        raise OSError("No space left on device")

    monkeypatch.setattr("dit_jax.storage.rewriting.copy_parts", refuse)
    with pytest.raises(TrainingError, match="was not made, '.*' is untouched: No space left"):
        reshard(run, str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_a_killed_one_leaves_no_run_and_is_done_again(run, tmp_path):
    out = tmp_path / "out"
    program = (
        "import time\n"
        "from dit_jax.storage import rewriting\n"
        "def stop(parts):\n"
        "    old, new = next(iter(parts))\n"
        "    new.write(old).result()\n"
        "    print('copied', flush=True)\n"
        "    time.sleep(600)\n"
        "rewriting.copy_parts = stop\n"
        f"rewriting.reshard({run!r}, {str(out)!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "copied"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["out.incomplete"]
    with pytest.raises(InputError, match="holds no checkpoint"):
        load(str(out))
    line = [sys.executable, "-m", "dit_jax", "reshard", run, str(out), "--parallel.fsdp", "4"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert states.stored_bits(out) == states.stored_bits(run)
    again = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert again.returncode == 2
    assert again.stderr == f"error: '{out}' is there already: choose another folder\n"
