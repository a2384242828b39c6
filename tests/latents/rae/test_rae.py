"""The latent space of a representation autoencoder, against the authors' and diffusers' code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.latents import RAE, Latents
from dit_jax.latents.rae import Normalization, RepresentationAutoencoder, ViTDecoder
from dit_jax.latents.rae.encoders import Dinov2, Perceptron

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.latents.rae.encoder_helpers import error, run_torch  # noqa: E402
from tests.latents.rae.rae_helpers import (  # noqa: E402
    KINDS,
    decoding_errors,
    encoding_error,
    errors,
    images,
    make_parts,
    make_statistics,
    make_whole,
    noise,
    part_errors,
)
from tests.torch_twins import rae as twins  # noqa: E402
from tests.torch_twins.to_jax import to_nchw, to_nhwc  # noqa: E402

SIZES = {"hidden": 32, "depth": 2, "heads": 2, "patch": 5, "image_size": 20}
ENCODER = Dinov2(**SIZES, ffn=Perceptron(128), registers=4, affine=False)
DECODER = ViTDecoder(patch=4, hidden=128, depth=2, heads=2, ffn=Perceptron(96, initial="torch"))
MEAN, STD = (torch.tensor(values) for values in (ENCODER.mean, ENCODER.std))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def parts(folder):
    """The authors' encoder, decoder and statistics, and the latent space they make."""
    models = make_parts(folder)
    folders = [str(folder / part) for part in ("encoder", "decoder", "statistics")]
    return *models, RAE(ENCODER, folders[0], DECODER, *folders[1:])


def encoded(encoder, pictures, statistics):
    """The authors' latents [B, C, H, W] of uint8 images."""
    x = torch.tensor(to_nchw(pictures / np.float32(255)))
    with torch.no_grad():
        tokens = run_torch(encoder, twins.encoder_input(x, 15, MEAN, STD))
    # Without scale and bias, which the authors take off the last norm.
    norm = encoder.layernorm
    tokens = (tokens[:, 5:] - norm.bias.detach()) / norm.weight.detach()
    return twins.encode_latents(tokens, statistics["mean"], statistics["var"])


def decoded(decoder, latents, statistics):
    """The authors' images of latents [B, C, H, W], in [-1, 1]."""
    tokens = twins.decode_latents(latents, statistics["mean"], statistics["var"])
    return 2 * twins.to_pixels(decoder(tokens.double()), MEAN, STD) - 1


@pytest.mark.parametrize("side", [12, 15], ids=["resized", "of the encoder's size"])
def test_latents_are_the_authors(parts, side):
    encoder, _, statistics, space = parts
    # A decoder with the encoder's patches sees images of the encoder's size.
    space = dataclasses.replace(space, decoder=DECODER.clone(patch=side // 3))
    pictures = images(side)
    assert space.shape((side, side, 3)) == (3, 3, 32)
    x = jax.jit(space.encode)(space.load(), jax.random.key(0), pictures)
    assert x.dtype == jnp.float32
    assert error(x, to_nhwc(encoded(encoder, pictures, statistics))) <= 1e-5


def test_images_and_their_gradient_are_the_authors(parts):
    _, decoder, statistics, space = parts
    params = space.load_decoder()
    value, gradient = errors(
        lambda x: space.decode(params, x),
        lambda x: decoded(decoder, x, statistics),
        noise((2, 3, 3, 32)),
    )
    assert value <= 1e-5
    assert gradient <= 1e-4


@pytest.mark.parametrize(("number", "part"), [(1, "decoder"), (2, "statistics")])
def test_each_part_is_the_authors(parts, folder, number, part):
    value, gradient = part_errors(part, parts[number], folder)
    assert value <= 1e-5
    assert gradient <= 1e-4


def test_the_decoder_takes_any_grid(parts):
    """Where the authors' resizes the tokens to its own grid, and always draws one size."""
    *_, space = parts
    params = space.load_decoder()["decoder"]
    x = jax.eval_shape(lambda x: DECODER.apply({"params": params}, x), noise((2, 5, 4, 32)))
    assert (x.shape, x.dtype) == ((2, 20, 16, 3), jnp.float32)


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    pytest.importorskip("diffusers")
    return make_whole(request.param, tmp_path_factory.mktemp("whole"))


def test_latents_are_those_of_diffusers(whole):
    """For images of one size alone: diffusers resizes others to it, and they get fewer here."""
    _, space = whole
    side = 16 * space.decoder.patch
    assert space.shape((side, side, 3)) == (16, 16, 128)
    assert space.shape((side // 2, side, 3)) == (8, 16, 128)
    assert encoding_error(*whole) <= 1e-5


def test_images_and_their_gradient_are_those_of_diffusers(whole):
    value, gradient = decoding_errors(*whole)
    assert value <= 1e-5
    assert gradient <= 1e-4


def test_the_parts_of_a_whole_are_found_in_its_folder(whole):
    _, space = whole
    folder, kept = space.statistics, Normalization(kept="deviation")
    encoder, decoder = space.encoder, space.decoder
    assert space == RAE(encoder, folder, decoder, folder, folder, normalization=kept)
    assert not encoder.affine
    params = space.load() | space.load_decoder()
    module = RepresentationAutoencoder(encoder, decoder, kept)
    pixels = jax.ShapeDtypeStruct((1, *(16 * encoder.patch,) * 2, 3), jnp.float32)
    abstract = jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract)
    x = jax.eval_shape(lambda params, x: module.apply({"params": params}, x), params, pixels)
    assert x.shape == (1, *(16 * decoder.patch,) * 2, 3)


@pytest.mark.parametrize("kept", ["variance", "deviation"])
def test_normalised_latents_come_back(kept):
    module = Normalization(kept)
    statistics = {key: to_nhwc(value[None])[0] for key, value in make_statistics().items()}
    params = {"params": {"mean": statistics["mean"], kept: statistics["var"]}}
    x = noise((2, 3, 3, 32))
    normal = module.apply(params, x)
    scale = np.sqrt(statistics["var"] + 1e-5) if kept == "variance" else statistics["var"] + 1e-5
    np.testing.assert_allclose(normal, (x - statistics["mean"]) / scale, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(module.apply(params, normal, inverse=True), x, atol=1e-5)


def test_without_statistics_latents_are_the_encoders_tokens(parts):
    encoder, _, _, space = parts
    bare = dataclasses.replace(space, statistics=None)
    assert bare.load().keys() == {"encoder"} and bare.load_decoder().keys() == {"decoder"}
    # Statistics with which the authors' code does nothing either.
    nothing = {"mean": torch.zeros(32, 3, 3), "var": torch.full((32, 3, 3), 1 - 1e-5)}
    tokens = bare.store(bare.load(), images(12))
    assert error(tokens, to_nhwc(encoded(encoder, images(12), nothing))) <= 1e-5


def test_what_is_missing_or_does_not_fit_is_said_in_one_line(parts):
    *_, space = parts
    assert isinstance(space, Latents) and space.decodes
    bare = RAE(ENCODER)
    assert not bare.decodes
    for call, message in [
        (lambda: space.shape((12, 14, 3)), "12x14 do not divide into the decoder's patches of 4x4"),
        (bare.load, "no encoder: set latents.encoder-weights"),
        (bare.load_decoder, "no decoder: set latents.decoder-weights"),
        (lambda: space.store(space.load(), images(16)), r"not of shape \(4, 4, 32\): make them"),
        (lambda: space.decode(space.load_decoder(), noise((1, 4, 4, 32))), r"not of shape \(4, 4"),
        (
            lambda: dataclasses.replace(space, decoder=DECODER.clone(depth=3)).load_decoder(),
            "of another model",
        ),
        (
            lambda: dataclasses.replace(space, statistics=space.decoder_weights).load(),
            "and not mean and variance: give the folder of statistics",
        ),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
