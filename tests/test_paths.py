"""Folders in buckets stay in buckets."""

import pathlib

import pytest
from etils import epath

from dit_jax.checkpoint import newest
from dit_jax.errors import InputError
from dit_jax.paths import full_path, local_folder


class Bucket:
    """Stands in for a bucket: nothing is there."""

    def exists(self, path):
        return False

    def isdir(self, path):
        return False


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(type(epath.Path("gs://b")), "_backend", Bucket())


def test_local_folders_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(full_path("runs/x")) == f"{tmp_path}/runs/x"
    assert str(full_path("~/x")) == "/home/someone/x"
    assert full_path(pathlib.Path("y")) == epath.Path(tmp_path) / "y"


def test_remote_folders_stay_where_they_are(bucket):
    assert str(full_path("gs://bucket/runs/x") / "checkpoints") == "gs://bucket/runs/x/checkpoints"
    with pytest.raises(InputError, match="'gs://bucket/runs/x' holds no checkpoint"):
        newest("gs://bucket/runs/x")


def test_a_missing_library_is_named(bucket, monkeypatch):
    def missing(*_):
        raise ImportError("no gcsfs")

    monkeypatch.setattr(Bucket, "exists", missing)
    with pytest.raises(InputError, match="'gs://bucket/x' needs a library: pip install gcsfs"):
        full_path("gs://bucket/x")


def test_logs_of_a_remote_run_are_local():
    assert local_folder("runs/x") == pathlib.Path("runs/x")
    assert local_folder("gs://bucket/experiments/x") == pathlib.Path("runs/x")
