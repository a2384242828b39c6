import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.data import DataWorkerError, Loader, batches, order, to_device
from dit_jax.data.in_memory import InMemoryRecords
from dit_jax.errors import InputError


def read(records, **changes):
    usual = {"batch_size": 8, "start": 0, "steps": 11, "seed": 3, "num_classes": 5, "flip": True}
    return batches(records, **(usual | changes))


def assert_equal(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], strict=True)


def numbers(delivered):
    """Which records were delivered: the pixel that neither an edge nor a flip touches."""
    return np.concatenate([batch["image"][:, 0, 2, 0] for batch in delivered])


@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_every_epoch_visits_every_record_once(length, seed, epoch):
    visited = [order(epoch * length + i, length, seed) for i in range(length)]
    assert sorted(visited) == list(range(length))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        tuple(order(epoch * 100 + i, 100, seed) for i in range(100))
        for epoch in range(3)
        for seed in range(3)
    ]
    assert len(set(orders)) == 9


@given(st.integers(1, 40))
@settings(max_examples=10, deadline=None)
def test_positions_do_not_depend_on_the_batch_size(batch_size):
    records = InMemoryRecords(np.arange(37).reshape(37, 1, 1, 1), np.zeros(37, int))
    steps = 80 // batch_size
    delivered = batches(records, batch_size=batch_size, start=0, steps=steps, seed=1, num_classes=0)
    rows = np.concatenate([batch["image"].ravel() for batch in delivered])
    assert rows.tolist() == [order(i, 37, 1) for i in range(steps * batch_size)]


def test_a_batch_is_what_the_records_are(numbered):
    delivered = list(read(numbered))
    assert len(delivered) == 11
    assert delivered[0]["image"].shape == (8, 4, 6, 1) and delivered[0]["image"].dtype == np.uint8
    assert delivered[0]["label"].shape == (8,) and delivered[0]["label"].dtype == np.int32
    labels = np.concatenate([batch["label"] for batch in delivered])
    np.testing.assert_array_equal(labels, numbers(delivered) % 5)


def test_float_records_keep_their_dtype():
    latents = np.random.default_rng(0).standard_normal((9, 2, 2, 4)).astype(np.float32)
    batch = next(read(InMemoryRecords(latents, np.zeros(9, int)), num_classes=0, flip=False))
    np.testing.assert_array_equal(batch["image"][3], latents[order(3, 9, 3)], strict=True)


@pytest.mark.parametrize("rows", [range(4), range(4, 8), [1, 2, 5]])
def test_a_process_may_read_its_rows_alone(numbered, rows):
    whole = [{name: x[np.array(rows)] for name, x in batch.items()} for batch in read(numbered)]
    assert_equal(read(numbered, rows=rows), whole)


@pytest.mark.parametrize("start", [1, 5, 10])
def test_a_resumed_run_is_the_same_run(numbered, start):
    assert_equal(read(numbered, start=start), list(read(numbered))[start:])


def test_reader_processes_change_nothing_even_on_resume(numbered):
    whole = list(read(numbered))
    assert_equal(read(numbered, start=4, loader=Loader(workers=2)), whole[4:])
    assert_equal(read(numbered, loader=Loader(workers=1, threads=0)), whole)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("threads", [0, 1, 8])
def test_threads_change_nothing(numbered, threads):
    assert_equal(read(numbered, loader=Loader(threads=threads)), read(numbered))


def test_a_run_that_is_over_delivers_nothing(numbered):
    assert not list(read(numbered, start=11))


def test_about_half_is_flipped_and_only_on_request(numbered):
    whole = list(read(numbered, steps=50))
    flipped = np.concatenate([batch["image"][:, 0, -1, 0] == 255 for batch in whole])
    assert 0.4 < flipped.mean() < 0.6
    # Not per record: the same record is seen both ways.
    assert 0 < flipped[numbers(whole) == 7].mean() < 1
    plain = list(read(numbered, steps=50, flip=False))
    assert all((batch["image"][:, :, 0] == 255).all() for batch in plain)
    np.testing.assert_array_equal(numbers(plain), numbers(whole))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_label_outside_the_classes_names_the_record(numbered, workers):
    with pytest.raises(InputError, match=r"^record \d+ has label 4, outside the 4 classes"):
        list(read(numbered, num_classes=4, loader=Loader(workers=workers)))
    assert not multiprocessing.active_children()


def test_records_without_labels_must_carry_zero(numbered):
    unlabelled = InMemoryRecords(numbered.images, np.zeros(37, int))
    assert len(list(read(unlabelled, num_classes=0))) == 11
    with pytest.raises(InputError, match="outside the 0 classes"):
        list(read(numbered, num_classes=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"seed": -1}, "seed -1 is negative"),
    ],
)
def test_bad_sizes_stop_before_anything_is_read(numbered, changes, message):
    with pytest.raises(InputError, match=message):
        read(numbered, **changes)
    with pytest.raises(InputError, match="no records"):
        read(InMemoryRecords(numbered.images[:0], numbered.labels[:0]))


def test_a_loader_refuses_impossible_numbers():
    for changes in ({"workers": -1}, {"threads": -1}, {"ahead": 0}):
        with pytest.raises(InputError, match=f"Loader.{next(iter(changes))}"):
            Loader(**changes)


def test_closing_ends_the_reader_processes(numbered):
    iterator = read(numbered, steps=1000, loader=Loader(workers=2))
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()
    assert not multiprocessing.active_children()


def test_a_killed_reader_process_is_reported_at_once(numbered):
    iterator = read(numbered, steps=100_000, loader=Loader(workers=2))
    next(iterator)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(DataWorkerError, match="data reader process died .*-9") as error:
        for _ in iterator:
            pass
    assert time.monotonic() - begin < 10
    assert "\n" not in str(error.value)
    assert not multiprocessing.active_children()


def test_reader_processes_take_no_accelerator(monkeypatch):
    class Probe:  # local, so that it travels to the reader by value
        def __len__(self):
            return 1

        def __getitem__(self, index):
            on_cpu = jax.config.jax_platforms == os.environ["JAX_PLATFORMS"] == "cpu"
            return {"image": np.full((1, 1, 1), on_cpu), "label": 0}

    monkeypatch.delenv("JAX_PLATFORMS")
    assert next(read(Probe(), loader=Loader(workers=1)))["image"].all()


SCRIPT = """
import multiprocessing, signal, time
import numpy as np
from dit_jax.data import Loader, batches
from dit_jax.data.in_memory import InMemoryRecords

if __name__ == "__main__":
    # Whatever started the tests may ignore Ctrl-C, and processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    records = InMemoryRecords(np.zeros((9, 4, 4, 1), np.uint8), np.zeros(9, int))
    iterator = batches(records, batch_size=4, start=0, steps=10**6, seed=0, num_classes=0,
                       loader=Loader(workers=2))
    for _ in range(2):  # one batch of each reader
        next(iterator)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    while True:
        next(iterator)
"""


@pytest.mark.parametrize("how", ["kill -9 of the parent", "Ctrl-C"])
def test_no_reader_process_outlives_its_parent(tmp_path, how):
    script, output = tmp_path / "script.py", tmp_path / "output"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    # A file, not a pipe: a reader that stayed would keep a pipe open and hang this test.
    with output.open("w") as stream, (tmp_path / "errors").open("w") as errors:
        parent = subprocess.Popen(
            [sys.executable, script],
            stdout=stream,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_until(lambda: output.read_text().endswith("\n"), seconds=60)
        readers = [int(pid) for pid in output.read_text().split()]
        assert len(readers) == 2 and all(map(is_running, readers))
        if how == "Ctrl-C":
            os.killpg(parent.pid, signal.SIGINT)
        else:
            os.kill(parent.pid, signal.SIGKILL)
        parent.wait(120)
        wait_until(lambda: not any(map(is_running, readers)), seconds=10)
    except BaseException:
        # Only then: multiprocessing's resource tracker outlives the parent to free shared memory.
        os.killpg(parent.pid, signal.SIGKILL)
        raise
    if how == "Ctrl-C":
        assert (tmp_path / "errors").read_text().count("Traceback") == 1


def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_to_device_shards_the_rows_over_the_mesh(numbered):
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = list(to_device(read(numbered, batch_size=16), sharding, np.arange(16), 16))
    for batch in placed:
        assert batch["image"].sharding.is_equivalent_to(sharding, 4)
        assert {shard.data.shape for shard in batch["image"].addressable_shards} == {(2, 4, 6, 1)}
    assert_equal(jax.device_get(placed), read(numbered, batch_size=16))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_to_device_reads_ahead_by_as_many_batches_as_asked(ahead):
    asked = []

    def source():
        for step in range(6):
            asked.append(step)
            yield {"label": np.full(2, step)}

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = to_device(source(), device, np.arange(2), 2, ahead)
    assert next(placed)["label"][0] == 0
    assert len(asked) == 1 + ahead
    assert [int(batch["label"][0]) for batch in placed] == [1, 2, 3, 4, 5]


def test_closing_to_device_closes_the_batches(numbered):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    source = read(numbered, steps=1000, loader=Loader(workers=1))
    placed = to_device(source, device, np.arange(8), 8)
    next(placed)
    placed.close()
    assert not multiprocessing.active_children()


def test_importing_the_room_imports_nothing_heavy():
    code = (
        "import sys, dit_jax.data;"
        "print(*{'jax', 'grain', 'sklearn', 'tensorflow', 'array_record'} & set(sys.modules))"
    )
    root = pathlib.Path(__file__).parents[2]
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True)
    assert printed.strip() == ""
