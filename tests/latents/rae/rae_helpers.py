"""Representation autoencoders in PyTorch with random weights, and the same ones here."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from dit_jax.interop.convert import convert_from_torch
from dit_jax.interop.rae import latents_of
from dit_jax.interop.store import Converted
from dit_jax.weights import load_weights
from tests.latents.rae import encoder_helpers
from tests.latents.rae.encoder_helpers import error
from tests.torch_twins import rae as twins
from tests.torch_twins.to_jax import to_nchw, to_nhwc

# The parts of the authors' code: both sides have 3 x 3 tokens, of 5 and of 4 pixels.
GRID, CHANNELS = 3, 32
DECODER = {"hidden_size": 128, "depth": 2, "num_heads": 2, "mlp_size": 96, "patch_size": 4}


def make_parts(folder):
    """Saves an encoder, a decoder and statistics, converts them, and returns the PyTorch ones.

    The converted ones are in the folders `encoder`, `decoder` and `statistics`. The decoder comes
    back in float64: its norms divide by little, and then PyTorch rounds as much as this library.
    """
    encoder = encoder_helpers.dinov2_with_registers(
        patch_size=5, image_size=20, num_register_tokens=4
    )
    encoder_helpers.randomised(encoder).save_pretrained(folder / "dinov2")
    decoder = twins.GeneralDecoder(CHANNELS, **DECODER, grid=GRID)
    decoder = twins.randomise_(decoder, seed=0).eval()
    torch.save(decoder.state_dict(), folder / "decoder.pt")
    statistics = make_statistics()
    torch.save(statistics, folder / "stat.pt")
    parts = {"encoder": "dinov2", "decoder": "decoder.pt", "statistics": "stat.pt"}
    for part, source in parts.items():
        convert_from_torch(str(folder / source), str(folder / part))
    return encoder, decoder.double(), statistics


# What diffusers' autoencoders have in common; its encoders have heads of 64. With another number of
# tokens than 16 x 16 it computes positions with which no decoder was trained.
SIZES = {
    "encoder_hidden_size": 128,
    "encoder_num_hidden_layers": 2,
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 96,
    "patch_size": 4,
}
HALVES = [0.5, 0.5, 0.5]
# Images of 64 pixels that the encoders see larger, and for MAE of 256.
KINDS = {
    "dinov2": {"encoder_patch_size": 14, "encoder_input_size": 224},
    "siglip2": {
        "encoder_patch_size": 16,
        "encoder_input_size": 256,
        "encoder_norm_mean": HALVES,
        "encoder_norm_std": HALVES,
    },
    "mae": {"encoder_patch_size": 16, "encoder_input_size": 256, "patch_size": 16},
}


class _Siglip4(torch.nn.Module):
    """SigLIP's image tower with the attribute that transformers 4 had and that diffusers needs."""

    def __init__(self, config):
        from transformers import SiglipVisionModel

        super().__init__()
        self.vision_model = SiglipVisionModel(config)

    def forward(self, images, **options):
        return self.vision_model(images, **options)


def diffusers_rae():
    """diffusers' AutoencoderRAE, which does not build SigLIP with transformers 5 as it is."""
    import transformers
    from diffusers import AutoencoderRAE
    from diffusers.models.autoencoders import autoencoder_rae

    if int(transformers.__version__.split(".")[0]) >= 5:
        autoencoder_rae.SiglipVisionModel = _Siglip4
    return AutoencoderRAE


def make_diffusers(kind, with_statistics=True, **changes):
    """Returns an AutoencoderRAE with random weights and, unless told otherwise, statistics."""
    options = {"encoder_type": kind} | SIZES | KINDS[kind] | changes
    if with_statistics:
        side = options["encoder_input_size"] // options["encoder_patch_size"]
        statistics = make_statistics(options["encoder_hidden_size"], side)
        options |= {"latents_mean": statistics["mean"], "latents_std": statistics["var"].sqrt()}
    return encoder_helpers.randomised(diffusers_rae()(**options))


def make_statistics(channels=CHANNELS, grid=GRID):
    """Mean and variance [C, H, W]; some of the variances are as small as what is added to them."""
    generator = torch.Generator().manual_seed(0)
    mean, exponent = torch.rand((2, channels, grid, grid), generator=generator)
    return {"mean": 4 * mean - 2, "var": 10 ** (6 * exponent - 5)}


def make_whole(kind, folder):
    """Returns diffusers' autoencoder, in float64, and the latents of its converted folder.

    The two folders are `theirs` and `ours`.
    """
    twin = make_diffusers(kind)
    twin.save_pretrained(folder / "theirs")
    convert_from_torch(str(folder / "theirs"), str(folder / "ours"))
    return twin.double(), latents_of(str(folder / "ours"))


def noise(shape, seed=0):
    """Normal noise, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images(side, count=2):
    """Noise [B, side, side, 3], uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def errors(function, twin, x):
    """Relative errors of `function(x)`, x [B, H, W, C], and of its derivative by x.

    What is derived is a random weighted sum. `twin` maps [B, C, H, W] to such a tensor.
    """
    inside = torch.tensor(to_nchw(x), requires_grad=True)
    theirs = twin(inside)
    weights = noise(to_nhwc(theirs.detach()).shape, seed=1)
    (theirs * torch.tensor(to_nchw(weights))).sum().backward()

    @jax.jit
    def run(x):
        value, vjp = jax.vjp(function, x)
        return value, vjp(jnp.asarray(weights))[0]

    value, gradient = run(jnp.asarray(x))
    return error(value, to_nhwc(theirs.detach())), error(gradient, to_nhwc(inside.grad))


def encoding_error(twin, space):
    """Relative error of the latents of an image, against an AutoencoderRAE in float64."""
    side = 16 * space.decoder.patch
    pictures = images(side, count=1)
    latents = jax.jit(space.encode)(space.load(), jax.random.key(0), pictures)
    with torch.no_grad():
        theirs = twin.encode(torch.tensor(to_nchw(pictures / 255))).latent
    return error(latents, to_nhwc(theirs))


def decoding_errors(twin, space):
    """Relative errors of the image of latents and of its derivative, against the same."""
    params = space.load_decoder()
    return errors(
        lambda x: space.decode(params, x),
        lambda x: 2 * twin.decode(x.double()).sample - 1,
        noise((1, 16, 16, space.encoder.hidden)),
    )


def part_errors(part, torch_part, folder):
    """The same of a decoder, or of normalisation, against the authors'."""
    found = Converted(str(folder / part), ema=None).found
    params = {"params": load_weights(str(folder / part), found.abstract())}
    x = noise((2, GRID, GRID, CHANNELS))
    if part == "decoder":
        theirs = lambda x: torch_part(tokens_of(x).double())  # noqa: E731
    else:
        theirs = lambda x: twins.encode_latents(tokens_of(x), **torch_part)  # noqa: E731
    return errors(lambda x: found.module.apply(params, x), theirs, x)


def tokens_of(latents):
    """A tensor [B, C, H, W] as tokens [B, H * W, C]."""
    return latents.flatten(start_dim=2).transpose(1, 2)


def shapes_of(tensors):
    return {key: tuple(value.shape) for key, value in tensors.items()}


def assert_equal(tensors, others):
    assert tensors.keys() == others.keys()
    for key, value in tensors.items():
        assert torch.equal(value, others[key]), key


def read_by_diffusers(folder):
    """diffusers' autoencoder from a folder that has all its tensors and no others."""
    twin, report = diffusers_rae().from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return twin.eval()
