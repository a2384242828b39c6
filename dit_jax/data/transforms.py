"""Image transforms shared by the sources."""

import io

import numpy as np
from PIL import Image

from dit_jax.errors import InputError

# What Pillow raises for a file that is not, or not wholly, an image.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def adm_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The crop of ADM and DiT: shrink until the short side is `size`, keep the central square.

    Source: `center_crop_arr` of openai/guided-diffusion ("Diffusion Models Beat GANs",
    arXiv 2105.05233), reproduced exactly because FID depends on it: halve with a box filter while
    the short side is at least twice `size`, then resize bicubically.

    Args:
      image: any RGB image, larger or smaller than `size`.
      size: height and width of the result.

    Returns:
      [size, size, 3] uint8.
    """
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(
        tuple(round(side * scale) for side in image.size), Image.Resampling.BICUBIC
    )
    left, top = ((side - size) // 2 for side in image.size)
    # Copied, for a view would keep the whole image alive and unwritable.
    return np.array(image)[top : top + size, left : left + size].copy()


def decode_rgb(encoded: bytes, name: str) -> Image.Image:
    """Decodes any image format to RGB, without turning it by its EXIF orientation, as ADM does.

    Args:
      encoded: the content of an image file.
      name: what the error calls the image.

    Raises:
      InputError: the content is not a whole image.
    """
    try:
        return Image.open(io.BytesIO(encoded)).convert("RGB")
    except _UNREADABLE as error:
        raise InputError(f"cannot read the image {name} ({error}): mend or remove it") from error
