"""torch-fidelity's functions on given features, where it is installed."""

import importlib.util
import sys
import types
from unittest import mock

import pytest

_TORCHVISION = ("", ".datasets", ".transforms", ".transforms.functional")


def metric(name: str) -> types.ModuleType:
    """Its module `metric_NAME`, or skips the test.

    Torchvision, which it imports but does not need for this, may be absent.
    """
    pytest.importorskip("torch")
    absent = [] if importlib.util.find_spec("torchvision") else _TORCHVISION
    absent = [f"torchvision{module}" for module in absent]
    sys.modules.update(dict.fromkeys(absent, mock.MagicMock()))
    try:
        return pytest.importorskip(f"torch_fidelity.metric_{name}")
    finally:
        for module in absent:  # Others ask whether there is a torchvision.
            del sys.modules[module]
