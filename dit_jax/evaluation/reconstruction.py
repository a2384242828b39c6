"""How far decoded images are from their originals, pixel by pixel and window by window."""

import concurrent.futures

import numpy as np

from dit_jax.errors import InputError

_LARGEST = 255.0
# SSIM's window and constants, as its authors chose them.
WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * _LARGEST) ** 2, (0.03 * _LARGEST) ** 2


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, over all its pixels and channels.

    Args:
      a: uint8 [N, H, W, C].
      b: uint8 [N, H, W, C].

    Returns:
      Decibels [N], float64; infinite where images are equal, so that a mean over images is, too.

    Raises:
      InputError: these are no two batches of images of one shape.
    """
    _check(a, b)
    with np.errstate(divide="ignore"):
        errors = [np.square(np.subtract(x, y, dtype=np.float64)).mean() for x, y in zip(a, b)]
        return 10 * np.log10(_LARGEST**2 / np.array(errors))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of each image (Wang et al., IEEE TIP 13(4), 2004), 1 for equal ones.

    Windows are Gaussian, 11 pixels wide with a deviation of 1.5, and stay inside the image; the
    mean is over them and over channels. Images are spread over the CPU's threads.

    Args:
      a: uint8 [N, H, W, C], H and W at least 11.
      b: uint8 [N, H, W, C].

    Returns:
      At most 1, [N], float64.

    Raises:
      InputError: these are no two batches of images of one shape, or they are too small.
    """
    _check(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise InputError(
            f"images of {a.shape[1]}x{a.shape[2]} are smaller than SSIM's windows of "
            f"{WINDOW}x{WINDOW}: compare larger ones"
        )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(_one_ssim, a, b)))


def _one_ssim(a: np.ndarray, b: np.ndarray) -> float:
    # One channel at a time stays in the cache.
    return float(np.mean([_channel_ssim(a[..., i], b[..., i]) for i in range(a.shape[-1])]))


def _channel_ssim(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b, squares, products = _windows(np.stack([a, b, a * a + b * b, a * b]))
    product, power = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    # Both variances and both powers occur only as sums.
    light = (2 * product + _C1) / (power + _C1)
    structure = (2 * (products - product) + _C2) / (squares - power + _C2)
    return (light * structure).mean()


def _windows(x: np.ndarray) -> np.ndarray:
    """Gaussian means of all windows that fit: [..., H, W] to [..., H - 10, W - 10]."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-np.square(offsets / _SIGMA) / 2)
    weights /= weights.sum()
    for _ in range(2):
        length = x.shape[-2] - WINDOW + 1
        x = sum(w * x[..., i : i + length, :] for i, w in enumerate(weights)).swapaxes(-1, -2)
    return x


def _check(a: np.ndarray, b: np.ndarray) -> None:
    for x in (a, b):
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape != a.shape:
            raise InputError(
                f"images {a.shape} of {a.dtype} and {b.shape} of {b.dtype}: compare two arrays "
                f"[N, H, W, C] of uint8 and one shape"
            )
