import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.images import to_uint8
from dit_jax.latents import VAE, Cached, Pixels

KEY = jax.random.key(0)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_all_256_values_come_back_from_pixels(transform):
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    pixels = Pixels()
    back = transform(lambda x: to_uint8(pixels.decode({}, pixels.encode({}, KEY, x))))(values)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, values)


def test_pixels_lie_between_minus_one_and_one():
    ends = Pixels().encode({}, KEY, np.array([0, 255], np.uint8).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(np.ravel(ends), [-1, 1])
    assert ends.dtype == jnp.float32
    assert Pixels().shape((8, 6, 3)) == (8, 6, 3) and Pixels().decodes


def moments(mean, log_variance, count=20_000):
    """Cached records of two channels with these means and log variances."""
    row = np.array([*mean, *log_variance], np.float32)
    return np.broadcast_to(row, (count, 1, 1, 4))


def test_cached_latents_are_draws_of_the_scaled_posterior():
    mean, log_variance, scale = np.array([1.5, -2.0]), np.array([0.0, np.log(4.0)]), 0.3
    x = np.asarray(Cached(VAE(scale=scale)).encode({}, KEY, moments(mean, log_variance)))
    assert x.shape == (20_000, 1, 1, 2) and x.dtype == np.float32
    # Four standard errors of a mean and of a standard deviation, over 20,000 draws.
    std = scale * np.exp(log_variance / 2)
    np.testing.assert_allclose(x.mean((0, 1, 2)), scale * mean, atol=4 * std.max() / 141)
    np.testing.assert_allclose(x.std((0, 1, 2)), std, rtol=4 / 200)
    assert abs(np.corrcoef(x.reshape(-1, 2).T)[0, 1]) < 4 / 141


def test_encoding_is_mean_plus_std_times_noise():
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(2, 3, 4, 5, 2)).astype(np.float32)
    noise = np.asarray(jax.random.normal(KEY, mean.shape))
    x = Cached(VAE()).encode({}, KEY, np.concatenate([mean, log_variance], axis=-1))
    expected = 0.18215 * (mean + np.exp(log_variance / 2) * noise)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


def test_encoding_follows_its_key():
    records = moments([0, 0], [0, 0], count=4)
    one, again = (Cached(VAE()).encode({}, KEY, records) for _ in range(2))
    other = Cached(VAE()).encode({}, jax.random.key(1), records)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(("log_variance", "clipped"), [(-1e4, -30.0), (1e4, 20.0)])
def test_extreme_variances_are_clipped(log_variance, clipped):
    mean = [0.0, 0.0]
    extreme = Cached(VAE()).encode({}, KEY, moments(mean, [log_variance] * 2, count=3))
    bound = Cached(VAE()).encode({}, KEY, moments(mean, [clipped] * 2, count=3))
    assert np.isfinite(extreme).all() and (np.asarray(extreme) != 0).all()
    np.testing.assert_array_equal(extreme, bound)


def test_half_precision_records_are_computed_in_float32():
    records = moments([1.0, 2.0], [0.0, 0.0], count=3)
    x = Cached(VAE()).encode({}, KEY, records.astype(np.float16))
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, Cached(VAE()).encode({}, KEY, records), rtol=1e-6)


def test_cached_latents_have_half_the_channels():
    assert Cached(VAE()).shape((32, 16, 8)) == (32, 16, 4)


@pytest.mark.parametrize("channels", [1, 3, 7])
def test_an_odd_number_of_channels_is_refused(channels):
    with pytest.raises(InputError, match=f"stored latents have {channels} channels"):
        Cached(VAE()).shape((32, 32, channels))


def test_a_shift_is_taken_off_before_scaling():
    records = moments([1.0, 2.0], [0.0, 0.0], count=3)
    plain = Cached(VAE(scale=0.5)).encode({}, KEY, records)
    shifted = Cached(VAE(scale=0.5, shift=3.0)).encode({}, KEY, records)
    np.testing.assert_allclose(shifted, plain - 1.5, rtol=1e-5)


def test_cached_latents_need_no_weights_but_to_be_decoded():
    latents = Cached(VAE())
    assert latents.load() == {} and not latents.decodes
    with pytest.raises(InputError, match="VAE.weights is not set: .* decode=False"):
        latents.load_decoder()
    assert Cached(VAE("weights/vae")).decodes and Cached(VAE("weights/vae")).load() == {}


def test_a_space_where_nothing_is_drawn_stores_its_latents():
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    stored = Pixels().store({}, images)
    cached = Cached(Pixels())
    assert cached.shape((4, 4, 1)) == (4, 4, 1) and cached.decodes
    np.testing.assert_array_equal(cached.encode({}, KEY, stored), Pixels().encode({}, KEY, images))
    np.testing.assert_array_equal(cached.decode({}, stored), stored)


def test_images_are_not_taken_for_cached_latents():
    with pytest.raises(InputError, match="the data are uint8 images, not cached latents"):
        Cached(Pixels()).encode({}, KEY, np.zeros((1, 4, 4, 1), np.uint8))
