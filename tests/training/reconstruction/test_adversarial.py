"""The adversarial losses equal their twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.training.reconstruction.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    quantised,
)


def logits(seed):
    return (1.5 * np.random.default_rng(seed).normal(size=(4, 30))).astype(np.float32)


@jax.jit
@jax.value_and_grad
def both_losses(logits):
    real, fake = logits
    return discriminator_loss(real, fake) + 10 * generator_loss(fake)


def test_losses_and_gradients_are_the_twins():
    torch = pytest.importorskip("torch")
    from tests.torch_twins import rae_losses as twins

    pair = logits(0), logits(1)
    inside = [torch.tensor(x, requires_grad=True) for x in pair]
    theirs = twins.discriminator_loss(*inside) + 10 * twins.generator_loss(inside[1])
    theirs.backward()
    value, slopes = both_losses(pair)
    assert value == pytest.approx(theirs.item(), rel=1e-6)
    for slope, x in zip(slopes, inside):
        np.testing.assert_allclose(slope, x.grad, atol=1e-8)


def test_a_discriminator_that_is_sure_has_nothing_to_learn():
    ones = np.ones((2, 5), np.float32)
    assert discriminator_loss(ones, -ones) == 0
    assert discriminator_loss(0 * ones, 0 * ones) == 1
    assert discriminator_loss(-ones, ones) == 2
    assert generator_loss(3 * ones) == -3


def test_the_adaptive_weight_is_the_twins():
    """Theirs by the gradient of the layer's weights, ours by its input and output's gradient."""
    torch = pytest.importorskip("torch")
    from tests.torch_twins import rae_losses as twins

    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    features, kernel, target = draw(3, 7, 5), draw(5, 4), draw(3, 7, 4)

    layer = torch.tensor(kernel.T, requires_grad=True)
    drawn = torch.tensor(features) @ layer.T
    reconstruction = (drawn - torch.tensor(target)).abs().mean() + drawn.square().mean()
    theirs = twins.adaptive_weight(reconstruction, -torch.sin(drawn).mean(), layer)

    @jax.jit
    def ours(features, kernel):
        drawn = features @ kernel
        reconstruction = jax.grad(lambda x: jnp.abs(x - target).mean() + jnp.square(x).mean())
        adversarial = jax.grad(lambda x: -jnp.sin(x).mean())
        return adaptive_weight(features, reconstruction(drawn), adversarial(drawn))

    assert ours(features, kernel) == pytest.approx(theirs.item(), rel=1e-5)


def test_the_adaptive_weight_is_bounded_and_a_constant():
    x = jnp.ones((1, 2, 3))
    assert adaptive_weight(x, x, 0 * x) == 1e4
    assert adaptive_weight(x, 0 * x, x) == 0
    assert adaptive_weight(x, 0 * x, 0 * x) == 0
    slopes = jax.grad(adaptive_weight, argnums=(0, 1, 2))(x, x, 2 * x)
    assert not any(slope.any() for slope in slopes)


def test_8_bits():
    levels = np.arange(256, dtype=np.float32) / 127.5 - 1
    for distance in (-0.99, 0, 0.99):  # In halves of the way to the next level.
        np.testing.assert_allclose(quantised(levels + distance / 255), levels, atol=1e-6)
    np.testing.assert_array_equal(quantised(np.float32([-1.7, 3, np.inf])), [-1, 1, 1])


def test_quantised_images_are_the_twins_and_stay_as_they_are():
    pytest.importorskip("torch")
    from tests.torch_twins import rae_losses as twins

    # Values outside, and halves between levels, which go to the even one.
    halves = (np.arange(255, dtype=np.float32) + 0.5) / 127.5 - 1
    random = np.random.default_rng(0).uniform(-1.2, 1.2, 4000).astype(np.float32)
    x = np.concatenate([halves, random])
    once = quantised(x)
    np.testing.assert_allclose(once, twins.quantise(x), atol=1e-6)
    np.testing.assert_array_equal(quantised(once), once)
