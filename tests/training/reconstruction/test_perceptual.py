"""Perceptual distances: LPIPS equals its twin, and the stand-in is one of its kind."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.training.reconstruction.perceptual import (
    LPIPS,
    VGG16,
    FeatureDistance,
    feature_distance,
)


def image(seed, side=16):
    return np.random.default_rng(seed).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)


def random_params(network, x):
    """Random kernels, no biases, and all channels equal."""
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            rng.normal(0, 0.3, leaf.shape).astype(np.float32)
            if leaf.ndim > 1
            else np.full(leaf.shape, path[-1].key != "bias", np.float32)
        ),
        abstract,
    )


def test_lpips_and_its_gradients_are_the_twins(tmp_path):
    pytest.importorskip("torch")
    from tests.training.reconstruction import pairs

    twin = pairs.lpips_twin()
    network, _ = pairs.through_conversion(twin, tmp_path)
    distance = LPIPS(str(tmp_path / "run"), network)
    value, gradient = pairs.lpips_errors(twin, distance, distance.load())
    assert value <= 1e-5
    assert gradient <= 1e-4


def test_vgg_16_has_its_published_size():
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(VGG16().init, jax.random.key(0), x)["params"]
    # torchvision's 138,357,544 parameters without those of its classifier, and LPIPS' 1,472.
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == 138_357_544 - 123_642_856 + 1_472


def test_one_layer_is_the_formula():
    features = np.random.default_rng(0).uniform(0.1, 1, (4, 2, 3, 5)).astype(np.float32)
    weight = np.arange(5.0)
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    expected = [
        np.mean(
            [weight @ (unit[i, y, x] - unit[i + 2, y, x]) ** 2 for y in (0, 1) for x in (0, 1, 2)]
        )
        for i in (0, 1)
    ]
    np.testing.assert_allclose(
        feature_distance(features[:2], features[2:], weight), expected, rtol=1e-5
    )


def test_where_no_feature_is_active_gradients_are_finite():
    features = np.random.default_rng(0).uniform(0.1, 1, (2, 2, 2, 3)).astype(np.float32)
    features[:, 0, 0] = features[0, 0, 1] = 0  # In both images, and in one.
    slope = jax.grad(lambda f: feature_distance(f[:1], f[1:], jnp.ones(3)).sum())(features)
    assert np.isfinite(slope).all()
    assert not slope[:, 0, 0].any() and slope[:, 1, 1].any(axis=-1).all()


def test_grey_images_have_no_features_and_finite_gradients():
    """Their value is what the network takes for zero."""
    network = VGG16((2, 2, 2, 2, 2))
    grey = np.tile(np.float32([-0.030, -0.088, -0.188]), (1, 16, 16, 1))
    params = jax.tree.map(np.abs, random_params(network, grey))

    @jax.jit
    @jax.value_and_grad
    def measure(x):
        return LPIPS("", network)(params, x, jnp.ones(x.shape))[0]

    value, slope = measure(grey)
    # White makes every feature active: in each of five layers, a unit vector differs from none.
    assert value == pytest.approx(5, rel=1e-5)
    assert np.isfinite(slope).all()


class Filters(nn.Module):
    """Two layers of features, as the stand-in wants them."""

    mean = (0.5, 0.4, 0.3)
    std = (0.5, 0.6, 0.7)

    @nn.compact
    def __call__(self, x):
        first = nn.Conv(4, (3, 3))(x)
        return [first, nn.Conv(3, (3, 3))(nn.relu(first))]


def test_any_network_stands_in():
    a, b, network = image(0), image(1), Filters()
    params = random_params(network, a)
    distance = FeatureDistance("", network)
    seen = ((np.concatenate([a, b]) + 1) / 2 - np.float32(network.mean)) / np.float32(network.std)
    layers = jax.jit(network.apply)({"params": params}, seen)
    halves = [(*jnp.split(x, 2), jnp.ones(x.shape[-1])) for x in layers]
    expected = np.mean([feature_distance(*half) for half in halves], axis=0)
    measure = jax.jit(distance)
    np.testing.assert_allclose(measure(params, a, b), expected, rtol=1e-5)
    np.testing.assert_allclose(measure(params, a, a), 0, atol=1e-10)


def test_weights_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(InputError, match="holds no weights"):
        LPIPS(str(tmp_path / "nothing")).load()
