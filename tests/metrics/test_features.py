"""Feature spaces: what they say when weights are missing, and DINOv2's CLS token."""

import jax
import numpy as np
import pytest
from PIL import Image

from dit_jax import serialization
from dit_jax.errors import InputError
from dit_jax.latents.rae.encoders import Perceptron
from dit_jax.metrics.features import ClassToken, DINOv2, Inception

SMALL = {"hidden": 32, "depth": 2, "heads": 2}


@pytest.mark.parametrize(
    ("space", "file"),
    [(Inception, "pt_inception-2015-12-05-6726825d.pth"), (DINOv2, "dinov2-large")],
)
def test_missing_weights_are_named_with_what_makes_them(tmp_path, space, file):
    folder = tmp_path / "none"
    with pytest.raises(InputError) as caught:
        space(str(folder)).load()
    message = str(caught.value)
    assert message.startswith(f"'{folder}' holds no weights: get {file} from https://")
    assert f"python -m dit_jax convert from-torch {file} {folder}" in message
    assert "\n" not in message


@pytest.mark.parametrize("space", [Inception(resize="clean"), DINOv2(), DINOv2("elsewhere")])
def test_it_is_its_own_configuration(space):
    assert serialization.from_json(serialization.to_json(space)) == space


def test_its_description_tells_the_resizing():
    assert Inception().description != Inception(resize="clean").description
    assert "clean-fid" in Inception(resize="clean").description
    assert "depth 24" in DINOv2().description


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """A model of transformers for images of 70 pixels, and its folder here."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.latents.rae import encoder_helpers

    folder = tmp_path_factory.mktemp("dinov2")
    twin = encoder_helpers.randomised(encoder_helpers.dinov2(image_size=70, patch_size=14))
    twin.save_pretrained(folder / "theirs")
    encoder_helpers.converted(folder / "theirs", folder / "ours")
    return twin, str(folder / "ours")


def resized_as_by_the_authors(twin):
    """The twin for images of 224 pixels, with positions as DINOv2's own code makes them."""
    import torch
    from torch.nn import functional as F

    from tests.latents.rae import encoder_helpers

    tensors = twin.state_dict()
    key = "embeddings.position_embeddings"
    table = tensors[key][:, 1:].reshape(1, 5, 5, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, scale_factor=(16 + 0.1) / 5, mode="bicubic")
    assert table.shape[2:] == (16, 16)
    table = table.permute(0, 2, 3, 1).flatten(1, 2)
    tensors[key] = torch.cat([tensors[key][:, :1], table], dim=1)
    whole = encoder_helpers.dinov2(image_size=224, patch_size=14)
    whole.load_state_dict(tensors)
    return whole.eval()


def test_the_cls_token_is_that_of_the_authors_protocol(dinov2):
    import torch

    from tests.interop.parity import relative_error

    twin, folder = dinov2
    space = DINOv2(folder, ClassToken(**SMALL, ffn=Perceptron(128), image_size=70))
    images = np.random.default_rng(0).integers(0, 256, (2, 200, 260, 3), dtype=np.uint8)
    found = jax.jit(space)(space.load(), images)
    assert found.keys() == {"pool"}
    shown = [Image.fromarray(x).resize((224, 224), Image.Resampling.BICUBIC) for x in images]
    pixels = torch.tensor(np.stack(shown)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (ClassToken.mean, ClassToken.std))
    with torch.no_grad():
        tokens = resized_as_by_the_authors(twin)((pixels - mean) / std).last_hidden_state
    # A few bytes of the resized images differ by one; without the offset it would be percents.
    assert relative_error(found["pool"], tokens[:, 0]) <= 1e-4


def test_weights_of_another_network_are_refused(dinov2):
    _, folder = dinov2
    with pytest.raises(InputError, match="are of another model"):
        DINOv2(folder).load()
