import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_jax.errors import InputError
from dit_jax.latents.vae import AutoencoderKL, tiled_decode, tiled_encode
from dit_jax.latents.vae.tiling import blend_weights, tile_starts
from tests.latents.vae.vae_helpers import random_params

KERNEL = np.random.default_rng(0).normal(size=(5, 5, 3, 3)).astype(np.float32) / 8


def noise(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def local_decode(x):
    """Doubles the sides, then sees two pixels around: a decoder that is local and homogeneous."""
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    return jax.lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def local_encode(x):
    """Two arrays of half the sides, the first without and the second with a look around."""
    y = jax.lax.conv_general_dilated(
        x, KERNEL, (2, 2), ((1, 2), (1, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return x[:, ::2, ::2], y


@st.composite
def tilings(draw):
    tile = draw(st.integers(1, 24))
    return draw(st.integers(tile, 120)), tile, draw(st.integers(0, tile - 1))


@given(tilings())
def test_tiles_cover_everything_with_the_overlap_asked_for(tiling):
    length, tile, overlap = tiling
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] + tile == length
    assert len(starts) == 1 or (np.diff(starts) > 0).all()
    assert (np.diff(starts) <= tile - overlap).all()
    # One tile fewer would not do.
    assert len(starts) == 1 or (len(starts) - 1) * (tile - overlap) + overlap < length


@given(tilings())
def test_weights_sum_to_one_everywhere(tiling):
    length, tile, overlap = tiling
    starts = tile_starts(length, tile, overlap)
    weights = blend_weights(starts, length, tile, overlap)
    total = np.zeros(length)
    for start, weight in zip(starts, weights):
        total[start : start + tile] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert (weights > 0).all()


def test_weights_cross_linearly_and_do_not_fall_at_the_border():
    starts = tile_starts(14, 8, 2)
    np.testing.assert_array_equal(starts, [0, 6])
    first, second = blend_weights(starts, 14, 8, 2)
    np.testing.assert_allclose(first, [1, 1, 1, 1, 1, 1, 0.75, 0.25])
    np.testing.assert_allclose(second, first[::-1])


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 5, 8, 3), (1, 8, 1, 3)])
def test_no_larger_than_a_tile_is_exactly_the_untiled_result(shape):
    z = noise(*shape)
    calls = []

    def decode(x):
        calls.append(x)
        return local_decode(x)

    result = tiled_decode(decode, z, factor=2, tile=8, overlap=3)
    assert len(calls) == 1 and calls[0] is z
    np.testing.assert_array_equal(result, local_decode(z))


@pytest.mark.parametrize(
    ("height", "width", "overlap"), [(20, 33, 4), (9, 8, 2), (3, 31, 7), (40, 40, 5), (16, 16, 0)]
)
def test_a_pointwise_decoder_is_not_changed(height, width, overlap):
    z = noise(2, height, width, 3)
    nearest = lambda x: jnp.tanh(x).repeat(4, axis=1).repeat(4, axis=2)  # noqa: E731
    result = tiled_decode(nearest, z, factor=4, tile=8, overlap=overlap)
    # Weights that sum to 1 up to rounding.
    np.testing.assert_allclose(result, nearest(z), rtol=1e-6, atol=1e-6)


def test_a_local_decoder_is_changed_next_to_seams_only():
    z, tile, overlap = noise(1, 29, 22, 3), 12, 4
    expected = np.asarray(local_decode(z))
    result = tiled_decode(local_decode, z, factor=2, tile=tile, overlap=overlap)
    difference = np.abs(result - expected)
    near = np.zeros((58, 44), bool)
    for axis, length in enumerate((29, 22)):
        starts = tile_starts(length, tile, overlap)
        for edge in [*starts[1:], *(starts[:-1] + tile)]:
            # The convolution looks two pixels beyond an edge and there finds zeros.
            near[(slice(None),) * axis + (slice(2 * edge - 2, 2 * edge + 2),)] = True
    assert difference[:, ~near].max() < 1e-5
    # Beside the edge a tile has at most 1.5 of 8 of the weight: the change is a part of what the
    # padding alone does there.
    padding = np.abs(local_decode(z[:, :12]) - expected[:, :24])[:, -2:].max()
    assert 1e-3 < difference.max() < 0.4 * padding


def test_tones_that_differ_between_tiles_leave_no_step():
    """A tile decodes to its mean, as norms shift tones, in a picture that brightens."""
    z = np.broadcast_to(np.linspace(0, 10, 48, dtype=np.float32)[:, None, None], (1, 48, 40, 3))
    decode = lambda x: x * 0 + x.mean(axis=(1, 2, 3), keepdims=True)  # noqa: E731
    jump = lambda x: np.abs(np.diff(x, axis=1)).max()  # noqa: E731
    stepwise = jump(tiled_decode(decode, z, factor=1, tile=16, overlap=0))
    blended = jump(tiled_decode(decode, z, factor=1, tile=16, overlap=8))
    # A step to a tile 16 pixels on becomes slopes, 8 pixels wide, to tiles 8 pixels on.
    assert stepwise > 3 and blended < 1.01 * stepwise / 16


def test_encoding_blends_every_array_that_comes_out():
    x = noise(2, 40, 26, 3)
    point, mixed = tiled_encode(local_encode, x, factor=2, tile=8, overlap=3)
    expected_point, expected_mixed = local_encode(x)
    np.testing.assert_allclose(point, expected_point, rtol=1e-6, atol=1e-6)
    difference = np.abs(mixed - expected_mixed)
    # Only outputs next to a tile's edge see its padding.
    assert mixed.shape == (2, 20, 13, 3) and (difference < 1e-5).mean() > 0.3


def test_the_autoencoder_sees_tiles_of_one_shape_alone():
    module = AutoencoderKL(channels=(8, 16), layers=1, groups=4)
    params = random_params(module, noise(1, 8, 8, 3))
    shapes = set()

    def decode(z):
        shapes.add(z.shape)
        return module.apply({"params": params}, z, method="decode")

    tiled = functools.partial(tiled_decode, factor=module.factor, tile=8, overlap=4)
    result = jax.jit(lambda z: tiled(decode, z))(noise(1, 20, 12, 4))
    assert result.shape == (1, 40, 24, 3) and np.isfinite(result).all()
    assert shapes == {(1, 8, 8, 4)}


def test_memory_is_that_of_one_tile():
    def temporary(side, decode):
        z = jax.ShapeDtypeStruct((1, side, side, 64), jnp.float32)
        return jax.jit(decode).lower(z).compile().memory_analysis().temp_size_in_bytes

    def wide(z):
        """Four times as much in between as comes out."""
        y = jnp.tanh(jnp.einsum("bhwc,cd->bhwd", z, jnp.ones((64, 512))))
        return jnp.einsum("bhwd,dc->bhwc", jnp.sort(y, axis=-1), jnp.ones((512, 1)))

    tiled = lambda z: tiled_decode(wide, z, factor=1, tile=32, overlap=8)  # noqa: E731
    one_tile = temporary(32, wide)
    assert temporary(128, wide) > 10 * one_tile
    # The result itself, of one channel, is part of the loop's state.
    assert temporary(128, tiled) < 1.5 * one_tile


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_tiles_that_do_not_advance_are_refused(overlap):
    with pytest.raises(InputError, match=rf"tiles of 8 cannot overlap by {overlap}: choose 0 to 7"):
        tiled_decode(local_decode, noise(1, 16, 16, 3), factor=2, tile=8, overlap=overlap)


def test_images_must_divide_by_the_factor():
    with pytest.raises(InputError, match="17x16: not multiples of 2"):
        tiled_encode(local_encode, noise(1, 17, 16, 3), factor=2, tile=8)


def test_another_factor_than_the_decoders_is_refused():
    with pytest.raises(InputError, match="tile of 8x8 became 16x16, not 64x64"):
        tiled_decode(local_decode, noise(1, 16, 16, 3), tile=8, overlap=2)
