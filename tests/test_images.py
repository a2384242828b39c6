import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dit_jax.images import grid, save_grid, to_uint8


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1.0, 0),  # 0.5: truncated, not rounded.
        (1.0, 255),  # 255.5: clamped, not wrapped to 0.
        (0.0, 128),
        (-1 / 255, 127),  # 127.5: truncated.
        (126.99 / 127.5, 254),  # 254.99.
        (127.01 / 127.5, 255),  # 255.01: clamped.
        (-127.5 / 127.5, 0),
        (-126.9 / 127.5, 1),  # 1.1.
        (-127.1 / 127.5, 0),  # 0.9.
        (-5.0, 0),
        (5.0, 255),
        (-np.inf, 0),
        (np.inf, 255),
    ],
)
def test_bytes_are_127_5_x_plus_128_clamped_and_truncated(value, expected):
    result = to_uint8(jnp.float32(value))
    assert result.dtype == jnp.uint8 and int(result) == expected


def test_bytes_are_the_formula_everywhere():
    x = np.random.default_rng(0).uniform(-1.2, 1.2, (4, 8, 8, 3)).astype(np.float32)
    expected = np.floor(np.clip(np.float32(127.5) * x + np.float32(128), 0, 255)).astype(int)
    result = np.asarray(to_uint8(jnp.asarray(x))).astype(int)
    assert result.shape == x.shape
    assert np.abs(result - expected).max() <= 1  # A fused multiply-add rounds once.
    assert (result != expected).mean() < 0.01


def shades(count, height=2, width=3, channels=1):
    """Images of one value each: 1, 2, ..."""
    values = np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(values, (count, height, width, channels))


def test_the_grid_runs_row_by_row_on_white():
    canvas = grid(shades(5), columns=3, pad=1)
    assert canvas.shape == (2 * 3 + 1, 3 * 4 + 1, 1) and canvas.dtype == np.uint8
    w = 255
    top = [w, 1, 1, 1, w, 2, 2, 2, w, 3, 3, 3, w]
    bottom = [w, 4, 4, 4, w, 5, 5, 5, w, w, w, w, w]
    white = [w] * 13
    np.testing.assert_array_equal(canvas[..., 0], [white, top, top, white, bottom, bottom, white])


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (4, 2, 2), (5, 2, 3), (10, 3, 4)]
)
def test_the_grid_is_about_square_by_default(count, rows, columns):
    canvas = grid(shades(count), pad=2)
    assert canvas.shape == (rows * 4 + 2, columns * 5 + 2, 1)
    assert set(np.unique(canvas)) == {*range(1, count + 1), 255}


def test_images_are_not_turned():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 2, 3, 3)
    np.testing.assert_array_equal(grid(image, pad=0), image[0])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_grid_is_a_png(tmp_path, channels, mode):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, channels), np.uint8)
    path = tmp_path / "new" / "folders" / "grid.png"
    save_grid(path, images, columns=3)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.mode == mode
        pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    # Eight pixels are shown as 64, without blur.
    assert pixels.shape == (12 * 8, 32 * 8, channels)
    np.testing.assert_array_equal(pixels[::8, ::8], grid(images, 3))
    np.testing.assert_array_equal(pixels[7::8, 7::8], grid(images, 3))


def test_large_images_are_not_enlarged(tmp_path):
    save_grid(tmp_path / "grid.png", np.zeros((1, 40, 40, 3), np.uint8))
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (44, 44)
