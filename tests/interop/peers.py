"""Every layout, the PyTorch model that it is measured against, and the measurement."""

import dataclasses
import functools

import numpy as np
import torch
from safetensors.torch import load_file

import dit_jax
from dit_jax.interop.convert import convert_from_torch, convert_to_torch
from tests.interop import parity
from tests.interop.test_diffusers_dit import Wrapped, randomised_model
from tests.interop.test_families import FAMILIES, randomised
from tests.latents.rae import encoder_helpers
from tests.latents.vae import test_autoencoder
from tests.latents.vae.vae_helpers import make_pair


@dataclasses.dataclass(frozen=True)
class Measured:
    """Relative errors, and whether the state dict came back bit for bit."""

    output: float
    gradient: float
    round_trip: bool


def _twin(name, folder):
    make, times, _ = FAMILIES[name]
    twin = randomised(make())
    run = parity.converted(twin, folder, layout=name.split(" ")[0])
    return _measured(run, twin, twin, times, folder)


def _diffusers_dit(folder):
    model = randomised_model()
    model.save_pretrained(folder / "theirs")
    convert_from_torch(str(folder / "theirs"), str(folder / "run"))
    run = dit_jax.load(str(folder / "run"))
    return _measured(run, Wrapped(model), model, np.array([3.0, 500.0, 999.0], np.float32), folder)


def _vae(folder):
    twin, module, params = make_pair()
    twin.save_pretrained(folder / "theirs")
    convert_from_torch(str(folder / "theirs"), str(folder / "run"))
    both = zip(("encode", "decode"), test_autoencoder.inputs(module))
    errors = [test_autoencoder.errors(twin, module, params, name, x) for name, x in both]
    output, gradient = map(max, zip(*errors))
    return Measured(output, gradient, _comes_back(folder, twin))


def _vision(name, folder):
    twin, module, params = encoder_helpers.make_pair(name, folder)
    errors = encoder_helpers.errors(twin, module, params, encoder_helpers.images())
    convert_to_torch(str(folder / "ours"), str(folder / "back"))
    one, other = (load_file(folder / side / "model.safetensors") for side in ("theirs", "back"))
    same = one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    return Measured(*errors, same)


def _measured(run, called, model, times, folder):
    return Measured(*parity.errors(run, called, times), _comes_back(folder, model))


def _comes_back(folder, model):
    try:
        parity.check_round_trip(folder, model, "back.safetensors")
    except AssertionError:
        return False
    return True


PEERS = {
    name: ("a twin from the paper's code", functools.partial(_twin, name)) for name in FAMILIES
}
PEERS["diffusers-dit"] = ("diffusers' DiTTransformer2DModel", _diffusers_dit)
PEERS["diffusers-vae"] = ("diffusers' AutoencoderKL", _vae)
for name, peer in {
    "dinov2": "Dinov2Model",
    "dinov2 with registers": "Dinov2WithRegistersModel",
    "siglip": "SiglipVisionModel",
    "vit-mae": "ViTMAEModel",
}.items():
    PEERS[name] = (f"transformers' {peer}", functools.partial(_vision, name))
