"""The VAE as a latent space: converted, encoded with, decoded from, sampled through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dit_jax
from dit_jax.diffusion import DDIM
from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch, convert_to_torch
from dit_jax.latents import VAE
from dit_jax.latents.vae import AutoencoderKL

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.latents.vae.vae_helpers import make_twin  # noqa: E402
from tests.torch_twins import dit  # noqa: E402
from tests.torch_twins.to_jax import to_nchw, to_nhwc  # noqa: E402

SMALL = AutoencoderKL((32, 64), layers=1, groups=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with diffusers' model and the same one converted."""
    path = tmp_path_factory.mktemp("vae")
    make_twin(scaling_factor=0.5, shift_factor=0.25).save_pretrained(path / "theirs")
    convert_from_torch(str(path / "theirs"), str(path / "vae"))
    return path


def test_latents_are_those_of_diffusers_shifted_and_scaled(folder):
    latents = VAE(str(folder / "vae"), SMALL, scale=0.5, shift=0.25)
    twin = diffusers.AutoencoderKL.from_pretrained(folder / "theirs")
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert latents.shape((16, 16, 3)) == (8, 8, 4)
    x = latents.encode(latents.load(), jax.random.key(0), images)
    with torch.no_grad():
        posterior = twin.encode(torch.from_numpy(to_nchw(images / np.float32(127.5) - 1)))[0]
        decoded = twin.decode(torch.from_numpy(to_nchw(np.asarray(x))) / 0.5 + 0.25)[0]
    noise = jax.random.normal(jax.random.key(0), x.shape)
    expected = 0.5 * (to_nhwc(posterior.mean) + to_nhwc(posterior.std) * noise - 0.25)
    np.testing.assert_allclose(x, expected, atol=1e-5)
    np.testing.assert_allclose(latents.decode(latents.load(), x), to_nhwc(decoded), atol=1e-5)


def test_large_images_go_through_in_tiles(folder):
    whole, tiled = (VAE(str(folder / "vae"), SMALL, tile=tile) for tile in (64, 8))
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 4))
    params = whole.load()
    one, other = (jax.jit(latents.decode)(params, x) for latents in (whole, tiled))
    assert one.shape == other.shape == (1, 32, 32, 3)
    assert not np.array_equal(one, other)


def test_a_converted_model_samples_images_through_its_vae(folder, tmp_path):
    sizes = {"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 64}
    twin = dit.randomise_(dit.DiT(**sizes, depth=1, num_heads=1, num_classes=10), seed=0)
    torch.save(twin.state_dict(), tmp_path / "model.pt")
    out = str(tmp_path / "run")
    convert_from_torch(str(tmp_path / "model.pt"), out, layout="dit", vae=str(folder / "vae"))
    run = dit_jax.load(out)
    assert run.latents == VAE(str(folder / "vae"), SMALL, scale=0.5, shift=0.25)
    images = dit_jax.sample(run, [3, 7], solver=DDIM(steps=2))
    x = dit_jax.sample(run, [3, 7], solver=DDIM(steps=2), decode=False)
    assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8
    decoded = run.latents.decode(run.latents.load(), jnp.asarray(x))
    assert np.abs(np.clip(127.5 * decoded + 128, 0, 255) - images).max() <= 1.01


def test_what_diffusers_says_of_the_latents_comes_back(folder, tmp_path):
    convert_to_torch(str(folder / "vae"), str(tmp_path / "back"))
    back = diffusers.AutoencoderKL.from_pretrained(tmp_path / "back")
    theirs = diffusers.AutoencoderKL.from_pretrained(folder / "theirs")
    assert (back.config.scaling_factor, back.config.shift_factor) == (0.5, 0.25)
    for key, value in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


def test_weights_that_are_not_there_or_of_another_model(folder):
    with pytest.raises(InputError, match="holds no weights: give a run, or what"):
        VAE(str(folder / "nothing")).load()
    with pytest.raises(InputError, match="are of another model"):
        VAE(str(folder / "vae"), SMALL.clone(latent_channels=8)).load()
    with pytest.raises(InputError, match="holds weights, not a run to sample from"):
        dit_jax.load(str(folder / "vae"))


def test_a_vae_of_other_channels_is_refused(folder, tmp_path):
    sizes = {"input_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 64}
    twin = dit.DiT(**sizes, depth=1, num_heads=1, num_classes=10)
    torch.save(twin.state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="latents of 4 channels, and this model's have 3"):
        convert_from_torch(
            str(tmp_path / "model.pt"),
            str(tmp_path / "run"),
            layout="dit",
            vae=str(folder / "vae"),
        )
