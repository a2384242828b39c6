"""torch-fidelity's functions on given features, where it is installed."""

import importlib
import sys
import types

import pytest


def metric(name: str) -> types.ModuleType:
    """Its module `metric_NAME`, or skips the test.

    Torchvision, which it imports but does not use for this, may be absent.
    """
    pytest.importorskip("torch")
    stubs = {
        "torchvision": {},
        "torchvision.datasets": dict.fromkeys(("CIFAR10", "CIFAR100", "STL10"), object),
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {},
    }
    try:
        importlib.import_module("torchvision")
    except ImportError:
        for path, values in stubs.items():
            parent, _, child = path.rpartition(".")
            sys.modules[path] = types.ModuleType(path)
            vars(sys.modules[path]).update(values)
            if parent:
                setattr(sys.modules[parent], child, sys.modules[path])
    else:
        stubs = {}
    try:
        return pytest.importorskip(f"torch_fidelity.metric_{name}")
    finally:
        for path in stubs:  # Others ask whether there is a torchvision.
            del sys.modules[path]
