"""Resizing, against a loop written from TensorFlow's formula, and against Pillow."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dit_jax.metrics.resize import resize_clean, resize_pillow, resize_tf1

SIDE = 299


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def source(position, old, new):
    """Where a pixel comes from, in float32: the two beside it, and how far it is from the first."""
    place = np.float32(position) * (np.float32(old) / np.float32(new))
    lower = int(place)
    return lower, min(lower + 1, old - 1), place - np.float32(lower)


def by_the_formula(images, size):
    """TensorFlow 1's bilinear, a pixel at a time: along the row above and below, then down."""
    images = images.astype(np.float32)
    old, out = images.shape[1:3], np.zeros((len(images), *size, images.shape[3]), np.float32)
    for y in range(size[0]):
        above, below, down = source(y, old[0], size[0])
        for x in range(size[1]):
            left, right, along = source(x, old[1], size[1])
            top, bottom = (
                images[:, row, left] + (images[:, row, right] - images[:, row, left]) * along
                for row in (above, below)
            )
            out[:, y, x] = top + (bottom - top) * down
    return out


@pytest.mark.parametrize(
    ("old", "new"),
    [((256, 256), (SIDE, SIDE)), ((32, 48), (SIDE, SIDE)), ((512, 320), (61, 299))],
)
def test_tf1_is_its_formula_bit_for_bit(old, new):
    images = pixels(1, *old, 3)
    ours = jax.jit(resize_tf1, static_argnums=1)(images, new)
    np.testing.assert_array_equal(ours, by_the_formula(images, new))


@settings(max_examples=10, deadline=None)
@given(*[st.integers(1, 12)] * 4, st.integers(0, 9))
def test_tf1_is_its_formula_at_any_size(height, width, rows, columns, seed):
    images = pixels(2, height, width, 1, seed=seed)
    expected = by_the_formula(images, (rows, columns))
    np.testing.assert_array_equal(resize_tf1(images, (rows, columns)), expected)


def test_tf1_leaves_an_image_of_that_size_alone():
    images = pixels(2, 17, 23, 3)
    np.testing.assert_array_equal(resize_tf1(images, (17, 23)), images)


SIZES = [((256, 256), (SIDE, SIDE)), ((64, 40), (SIDE, SIDE)), ((333, 512), (224, 224))]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_clean_is_pillows_in_floats(old, new):
    image = pixels(*old, 3)
    image[: old[0] // 2], image[: old[0] // 4] = 0, 255  # Edges, for it to shoot over.
    channels = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    assert channels[0].mode == "F"
    theirs = [np.asarray(c.resize(new[::-1], Image.Resampling.BICUBIC)) for c in channels]
    assert np.min(theirs) < 0 and np.max(theirs) > 255
    ours = jax.jit(resize_clean, static_argnums=1)(image[None], new)[0]
    np.testing.assert_allclose(ours, np.clip(np.stack(theirs, -1), 0, 255), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_pillows_own_is_in_bytes(old, new):
    image = pixels(*old, 3)
    theirs = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BICUBIC))
    ours = np.asarray(jax.jit(resize_pillow, static_argnums=1)(image[None], new)[0])
    # Pillow's weights have 22 bits after the point, which turns what lies at a half.
    wrong = ours != theirs
    assert wrong.mean() < 1e-4
    assert np.abs(ours - theirs.astype(np.float32)).max() <= 1
