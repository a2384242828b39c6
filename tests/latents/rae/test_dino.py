"""DINO's features at several depths equal the twin's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.latents.rae.encoders import Perceptron
from dit_jax.latents.rae.encoders.dino import Dino

TINY = Dino(
    patch=4,
    hidden=16,
    depth=4,
    heads=2,
    ffn=Perceptron(24, approximate=True),
    image_size=8,
    tapped=(1, 3),
)


def abstract(module):
    images = jax.ShapeDtypeStruct((1, module.image_size, module.image_size, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


def test_taps_and_their_gradient_are_the_twins(tmp_path):
    pytest.importorskip("torch")
    from tests.training.reconstruction import pairs

    twin = pairs.dino_twin()
    taps, gradient = pairs.dino_errors(twin, *pairs.through_conversion(twin, tmp_path))
    assert taps <= 1e-5
    assert gradient <= 1e-4


def test_the_bias_of_keys_does_not_matter():
    """RAE's code puts zeros there."""
    rng = np.random.default_rng(0)
    normal = lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(normal, abstract(TINY))
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    run = jax.jit(lambda params: TINY.apply({"params": params}, images))
    before = run(params)
    bias = params["blocks"]["layers"]["attention"]["qkv"]["bias"]
    assert bias[:, 1].all()
    bias[:, 1] = 0
    for one, other in zip(before, run(params)):
        np.testing.assert_allclose(one, other, atol=1e-5)
    bias[:, 0] = 0
    assert not np.allclose(before[0], run(params)[0], atol=1e-2)


def test_the_default_is_vit_s_8():
    # DINO's 21,670,272 parameters, less its last norm's.
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(Dino()))) == 21_670_272 - 2 * 384
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    found = jax.eval_shape(Dino().apply, {"params": abstract(Dino())}, images)
    assert [x.shape for x in found] == 5 * [(2, 784, 384)]


@pytest.mark.parametrize("tapped", [(1, 4), (3, 1), (1, 1, 3), (-1,)])
def test_blocks_that_are_not_there_are_not_tapped(tapped):
    with pytest.raises(InputError, match="of 4: tap some of them"):
        abstract(TINY.clone(tapped=tapped))
