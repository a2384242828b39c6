"""Every layout, the PyTorch model that it is measured against, and the measurement."""

import dataclasses
import functools

import numpy as np
import torch
from safetensors.torch import load_file

import dit_jax
from dit_jax.interop.convert import convert_from_torch, convert_to_torch
from dit_jax.training.reconstruction.perceptual import LPIPS
from tests.interop import parity
from tests.interop.test_diffusers_dit import Wrapped, randomised_model
from tests.interop.test_families import FAMILIES, randomised
from tests.latents.rae import encoder_helpers, rae_helpers, test_efficientnet
from tests.latents.vae import test_autoencoder
from tests.latents.vae.vae_helpers import make_pair
from tests.metrics import inception_pair
from tests.training.reconstruction import pairs


@dataclasses.dataclass(frozen=True)
class Measured:
    """Relative errors, None where no gradient is wanted, and whether all came back bit for bit."""

    output: float
    gradient: float | None
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
    files = (load_file(folder / side / "model.safetensors") for side in ("theirs", "back"))
    return Measured(*errors, _same(*files))


def _rae_part(part, folder):
    models = dict(zip(("decoder", "statistics"), rae_helpers.make_parts(folder)[1:]))
    errors = rae_helpers.part_errors(part, models[part], folder)
    convert_to_torch(str(folder / part), str(folder / "back.pt"))
    file = {"decoder": "decoder.pt", "statistics": "stat.pt"}[part]
    return Measured(*errors, _same(*(torch.load(folder / name) for name in (file, "back.pt"))))


def _rae(kind, folder):
    pair = rae_helpers.make_whole(kind, folder)
    drawn, gradient = rae_helpers.decoding_errors(*pair)
    convert_to_torch(str(folder / "ours"), str(folder / "back"))
    name = "diffusion_pytorch_model.safetensors"
    same = _same(*(load_file(folder / side / name) for side in ("theirs", "back")))
    return Measured(max(drawn, rae_helpers.encoding_error(*pair)), gradient, same)


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _dino(folder):
    twin = pairs.dino_twin()
    errors = pairs.dino_errors(twin, *pairs.through_conversion(twin, folder))
    return Measured(*errors, _comes_back(folder, twin))


def _lpips(folder):
    twin = pairs.lpips_twin()
    network, params = pairs.through_conversion(twin, folder)
    errors = pairs.lpips_errors(twin, LPIPS(str(folder / "run"), network), params)
    return Measured(*errors, _comes_back(folder, twin))


def _efficientnet(folder):
    twin, params = test_efficientnet.make_pair(folder)
    return Measured(*test_efficientnet.errors(twin, params), _comes_back(folder, twin))


def _inception(folder):
    twin, params = inception_pair.make_pair()
    torch.save(twin.state_dict(), folder / "model.pt")
    convert_from_torch(str(folder / "model.pt"), str(folder / "run"))
    return Measured(max(inception_pair.errors(twin, params)), None, _comes_back(folder, twin))


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
PEERS["dino"] = ("a twin from the paper's code", _dino)
PEERS["lpips"] = ("a twin from the paper's code", _lpips)
PEERS["efficientnet-lite0"] = ("a twin from the paper's code", _efficientnet)
PEERS["inception"] = ("a twin of pytorch-fid's", _inception)
for part in ("decoder", "statistics"):
    PEERS[f"rae-{part}"] = ("a twin from the paper's code", functools.partial(_rae_part, part))
for kind in rae_helpers.KINDS:
    measure = functools.partial(_rae, kind)
    PEERS[f"diffusers-rae of {kind}"] = ("diffusers' AutoencoderRAE", measure)
