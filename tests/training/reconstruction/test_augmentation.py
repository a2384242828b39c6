"""The discriminator's augmentation equals its twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.training.reconstruction.augmentation import diff_augment, random_numbers

SHAPE = (6, 16, 24, 3)  # Shifts of up to 2 and 3 pixels.
NEUTRAL = np.float32([0.5, 0.5, 0.5, 0.5, 0.5])


def images():
    return np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)


@jax.jit
def run(x, numbers, weight):
    augmented, pull_back = jax.vjp(lambda x: diff_augment(x, numbers), x)
    return augmented, pull_back(weight)[0]


def augmented(numbers):
    """Images with each sample's five numbers [B, 5]."""
    return run(images(), jnp.asarray(np.float32(numbers).T), jnp.ones(SHAPE))[0]


def rows(**changes):
    """Neutral numbers of all samples, with changes to some of the five."""
    names = ("down", "right", "brightness", "saturation", "contrast")
    numbers = np.tile(NEUTRAL, (len(images()), 1))
    for name, value in changes.items():
        numbers[:, names.index(name)] = value
    return numbers


def test_values_and_gradients_are_the_twins():
    torch = pytest.importorskip("torch")
    from tests.torch_twins.rae_losses import diff_augment as twin
    from tests.torch_twins.to_jax import to_nchw, to_nhwc

    rng = np.random.default_rng(1)
    numbers = rng.uniform(size=(5, len(images()))).astype(np.float32)
    numbers[:2, 0], numbers[:2, 1] = 0, 0.99999  # The largest shifts both ways.
    weight = rng.normal(size=SHAPE).astype(np.float32)
    inside = torch.tensor(to_nchw(images()), requires_grad=True)
    theirs = twin(inside, torch.tensor(numbers))
    (theirs * torch.tensor(to_nchw(weight))).sum().backward()
    value, slope = run(images(), numbers, weight)
    np.testing.assert_allclose(value, to_nhwc(theirs.detach()), atol=1e-6)
    np.testing.assert_allclose(slope, to_nhwc(inside.grad), atol=1e-5)


def test_neutral_numbers_change_nothing():
    np.testing.assert_allclose(augmented(rows()), images(), atol=1e-6)


def test_small_numbers_move_images_down_and_right_and_grey_comes_in():
    moved = augmented(rows(down=0, right=0))
    np.testing.assert_allclose(moved[:, 2:, 3:], images()[:, :-2, :-3], atol=1e-6)
    assert np.abs(moved[:, :2]).max() < 1e-6 and np.abs(moved[:, :, :3]).max() < 1e-6


def test_all_shifts_are_equally_likely():
    """Five of the height here: two either way, and none."""
    shifts = []
    for number in np.arange(10) / 10 + 0.05:
        moved = augmented(rows(down=number))
        inner = slice(2, -2)
        errors = [
            np.abs(moved[:, inner] - np.roll(images(), s, axis=1)[:, inner]).max()
            for s in range(-2, 3)
        ]
        shifts.append(int(np.argmin(errors)) - 2)
    assert shifts == [2, 2, 1, 1, 0, 0, -1, -1, -2, -2]


def test_colours():
    x = images()
    np.testing.assert_allclose(augmented(rows(brightness=0.75)), x + 0.25, atol=1e-6)
    grey = np.broadcast_to(x.mean(axis=-1, keepdims=True), SHAPE)
    np.testing.assert_allclose(augmented(rows(saturation=0)), grey, atol=1e-6)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(augmented(rows(contrast=0)), (x + mean) / 2, atol=1e-6)


def test_each_image_has_its_own_numbers():
    numbers = rows()
    numbers[3] = 0.1
    changed = np.abs(augmented(numbers) - images()).max(axis=(1, 2, 3)) > 1e-3
    np.testing.assert_array_equal(changed, np.arange(len(images())) == 3)


def test_random_numbers_are_uniform_and_the_keys():
    numbers = random_numbers(jax.random.key(0), 1000)
    assert numbers.shape == (5, 1000)
    assert numbers.min() >= 0 and numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(axis=1), 0.5, atol=0.05)
    assert np.abs(np.corrcoef(numbers) - np.eye(5)).max() < 0.15
    np.testing.assert_array_equal(numbers, random_numbers(jax.random.key(0), 1000))
