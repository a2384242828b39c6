"""PSNR and SSIM: known answers, and scikit-image's."""

import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.evaluation.reconstruction import psnr, ssim


def pictures(seed=0, shape=(3, 17, 24, 3)):
    """Waves with noise, of different brightness."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.linspace(0, 9, np.prod(shape[1:]))).reshape(shape[1:])
    level = np.linspace(40, 200, shape[0])[:, None, None, None]
    return np.clip(level + 40 * wave + 9 * rng.normal(size=shape), 0, 255).astype(np.uint8)


def noisy(images, deviation, seed=1):
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(2, 11, 11, 1), (3, 17, 24, 3), (1, 40, 12, 4)])
@pytest.mark.parametrize("deviation", [1, 20, 200])
def test_both_are_scikit_images(shape, deviation):
    metrics = pytest.importorskip("skimage.metrics")
    a = pictures(shape=shape)
    b = noisy(a, deviation)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    similar = [
        metrics.structural_similarity(x, y, data_range=255, channel_axis=-1, **options)
        for x, y in zip(a, b)
    ]
    np.testing.assert_allclose(ssim(a, b), similar, atol=1e-12)
    ratios = [metrics.peak_signal_noise_ratio(x, y) for x, y in zip(a, b)]
    np.testing.assert_allclose(psnr(a, b), ratios, rtol=1e-12)


def test_equal_images():
    a = pictures()
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(psnr(a, a), 3 * [np.inf])
        np.testing.assert_allclose(ssim(a, a), 1, rtol=1e-12)


def test_a_constant_error_is_its_square():
    grey = np.full((2, 11, 11, 3), 100, np.uint8)
    other = grey.copy()
    other[0] += 5
    other[1] -= 5  # Unsigned numbers must not wrap around.
    np.testing.assert_allclose(psnr(grey, other), 20 * np.log10(255 / 5))


def test_flat_images_differ_in_brightness_alone():
    black, white = np.zeros((1, 12, 12, 1), np.uint8), np.full((1, 12, 12, 1), 255, np.uint8)
    assert psnr(black, white) == [0]
    c1 = (0.01 * 255) ** 2
    assert ssim(black, white) == pytest.approx(c1 / (255**2 + c1), rel=1e-9)


def test_one_window_is_the_formula():
    a, b = pictures(shape=(1, 11, 11, 1)), pictures(5, shape=(1, 11, 11, 1))
    distance = np.square(np.arange(11) - 5)
    weight = np.exp(-np.add.outer(distance, distance) / (2 * 1.5**2)).ravel()
    x, y = a.ravel().astype(float), b.ravel().astype(float)
    means = [np.average(v, weights=weight) for v in (x, y)]
    (xx, xy), (_, yy) = np.cov(x, y, aweights=weight, ddof=0)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * means[0] * means[1] + c1) * (2 * xy + c2)
    expected /= (means[0] ** 2 + means[1] ** 2 + c1) * (xx + yy + c2)
    assert ssim(a, b) == pytest.approx(expected, rel=1e-9)


def test_each_image_is_measured_alone_and_either_way():
    a, b = pictures(), noisy(pictures(), 20)
    for metric in (psnr, ssim):
        np.testing.assert_allclose(metric(a, b), metric(b, a), rtol=1e-12)
        alone = [metric(a[i : i + 1], b[i : i + 1])[0] for i in range(3)]
        np.testing.assert_array_equal(metric(a, b), alone)
        assert metric(a, b).dtype == np.float64


def test_no_images_have_no_values():
    none = np.zeros((0, 11, 11, 3), np.uint8)
    assert psnr(none, none).shape == ssim(none, none).shape == (0,)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((1, 12, 12, 3), np.uint8), np.zeros((1, 12, 12, 1), np.uint8)),
        (np.zeros((1, 12, 12, 3), np.uint8), np.zeros((1, 12, 12, 3), np.float32)),
        (np.zeros((12, 12, 3), np.uint8), np.zeros((12, 12, 3), np.uint8)),
    ],
    ids=["shape", "dtype", "no batch"],
)
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_other_arrays_are_refused(metric, a, b):
    with pytest.raises(InputError, match=r"compare two arrays \[N, H, W, C\] of uint8"):
        metric(a, b)


def test_images_without_a_window_are_refused():
    small = np.zeros((1, 10, 30, 3), np.uint8)
    with pytest.raises(InputError, match="10x30 are smaller than SSIM's windows of 11x11"):
        ssim(small, small)
    assert psnr(small, small) == [np.inf]
