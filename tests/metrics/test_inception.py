"""Inception-v3 equals a twin, and torch-fidelity's where that is installed."""

import sys
from unittest import mock

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dit_jax.interop.convert import convert_from_torch  # noqa: E402
from dit_jax.metrics.features import Inception  # noqa: E402
from dit_jax.metrics.resize import resize_clean, resize_tf1  # noqa: E402
from tests.interop.parity import check_round_trip, relative_error  # noqa: E402
from tests.metrics.inception_pair import SIDE, errors, make_pair  # noqa: E402
from tests.torch_twins.to_jax import to_nchw  # noqa: E402

SPACES = {way: jax.jit(Inception(resize=way)) for way in ("tf1", "clean")}


@pytest.fixture(scope="module")
def pair():
    return make_pair()


def pixels():
    return np.random.default_rng(2).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)


def test_features_are_the_twins(pair):
    assert max(errors(*pair)) <= 1e-5


@pytest.mark.slow  # Hundreds of small arrays on disk.
def test_the_space_reads_converted_weights_and_they_go_back_bit_for_bit(pair, tmp_path):
    torch.save(pair[0].state_dict(), tmp_path / "model.pt")
    convert_from_torch(str(tmp_path / "model.pt"), str(tmp_path / "run"))
    params = Inception(str(tmp_path / "run")).load()
    assert jax.tree.all(jax.tree.map(np.array_equal, params, pair[1]))
    check_round_trip(tmp_path, pair[0], "back.safetensors")


def check(found, pool, spatial, logits):
    assert found.keys() == {"pool", "spatial", "logits"}
    assert relative_error(found["pool"], pool) <= 1e-5
    assert relative_error(found["spatial"], spatial) <= 1e-5
    assert relative_error(found["logits"], logits) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("way", SPACES)
def test_a_space_is_the_network_behind_a_resizing(pair, way):
    resize = {"tf1": resize_tf1, "clean": resize_clean}[way]
    resized = np.asarray(resize(pixels(), (SIDE, SIDE)))
    check(SPACES[way](pair[1], pixels()), *pair[0](torch.tensor(to_nchw((resized - 128) / 128))))


@pytest.fixture
def torch_fidelity(monkeypatch):
    """torch-fidelity without torchvision, which this network does not use."""
    if "torchvision" not in sys.modules:
        for part in ("", ".datasets", ".transforms", ".transforms.functional"):
            monkeypatch.setitem(sys.modules, f"torchvision{part}", mock.MagicMock())
    return pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@torch.no_grad()
def test_features_of_images_are_torch_fidelitys(torch_fidelity, pair, tmp_path):
    torch.save(pair[0].state_dict(), tmp_path / "model.pt")
    names, file = ["2048", "logits_unbiased"], str(tmp_path / "model.pt")
    extractor = torch_fidelity.FeatureExtractorInceptionV3("fid", names, file)
    block = []
    extractor.Mixed_6d.register_forward_hook(lambda _, inputs, output: block.append(output))
    pool, logits = extractor(torch.tensor(to_nchw(pixels())))
    spatial = block[0][:, :7].permute(0, 2, 3, 1).flatten(1)
    check(SPACES["tf1"](pair[1], pixels()), pool, spatial, logits)
