import io

import numpy as np
import pytest
from PIL import Image

from dit_jax.data.transforms import adm_center_crop, decode_rgb
from dit_jax.errors import InputError


def photo(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def reference_crop(image, size):
    """The crop again, from its description: the number of halvings is known beforehand."""
    width, height = image.size
    halvings = (
        int(np.floor(np.log2(min(width, height) / size))) if min(width, height) >= size else 0
    )
    for _ in range(halvings):
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    factor = size / min(image.width, image.height)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
    "width_height", [(50, 37), (37, 50), (64, 64), (131, 70), (16, 40), (10, 11), (128, 32)]
)
def test_crop_equals_an_independent_one(width_height):
    image = photo(*width_height)
    np.testing.assert_array_equal(adm_center_crop(image, 16), reference_crop(image, 16))


def test_an_image_of_the_right_size_is_unchanged():
    image = photo(16, 16)
    np.testing.assert_array_equal(adm_center_crop(image, 16), np.asarray(image))


def test_halving_averages_two_by_two_pixels():
    pixels = np.repeat(np.repeat(np.arange(0, 240, 40, np.uint8).reshape(2, 3), 2, 0), 2, 1)
    image = Image.fromarray(np.stack([pixels] * 3, -1)[:, :4])
    np.testing.assert_array_equal(adm_center_crop(image, 2)[..., 0], [[0, 40], [120, 160]])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
    file = io.BytesIO()
    image = Image.new(mode, (5, 4))
    image.save(file, "TIFF" if mode == "CMYK" else "PNG")
    decoded = decode_rgb(file.getvalue(), "x")
    assert decoded.mode == "RGB" and decoded.size == (5, 4)


def test_exif_orientation_is_ignored():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    photo(20, 10).save(file, "JPEG", exif=exif)
    assert decode_rgb(file.getvalue(), "x").size == (20, 10)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_broken_image_is_named(kind, kept):
    file = io.BytesIO()
    photo(40, 40).save(file, kind)
    content = file.getvalue()
    with pytest.raises(InputError, match="cannot read the image holiday.jpg"):
        decode_rgb(content[: int(kept * len(content)) if kept < 1 else kept], "holiday.jpg")
