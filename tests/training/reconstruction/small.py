"""A decoder so small that tests can afford to train it, with frozen networks of random weights."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dit_jax.data import Digits, ImageFolder
from dit_jax.experiment import RunFolder, Training
from dit_jax.latents import RAE
from dit_jax.latents.rae import ViTDecoder
from dit_jax.latents.rae.encoders import Dinov2, Perceptron
from dit_jax.latents.rae.encoders.dino import Dino
from dit_jax.storage.weights import save_weights
from dit_jax.training.optimizer import AdamW
from dit_jax.training.reconstruction.adversary import Adversary
from dit_jax.training.reconstruction.experiment import DecoderExperiment
from dit_jax.training.reconstruction.perceptual import LPIPS, VGG16

SIZES = {"hidden": 32, "depth": 2, "heads": 2}
ENCODER = Dinov2(**SIZES, patch=4, image_size=16, ffn=Perceptron(48), affine=False)
DECODER = ViTDecoder(**SIZES, patch=8, ffn=Perceptron(48, initial="torch"))
VGG = VGG16((4, 4, 4))
DINO = Dino(**SIZES, image_size=32, ffn=Perceptron(48, approximate=True), tapped=(0, 1))


def save_images(folder: pathlib.Path) -> None:
    """Digits of 24 x 24 pixels, each in a colour of its own, as files of two splits."""
    digits = Digits().open("test")
    colours = np.random.default_rng(0).uniform(0.3, 1, (len(digits), 1, 1, 3))
    images = digits.images.repeat(3, axis=1).repeat(3, axis=2) * colours
    for split, chosen in (("train", images[:40]), ("test", images[40:52])):
        (folder / split).mkdir(parents=True)
        for number, image in enumerate(chosen.astype(np.uint8)):
            Image.fromarray(image).save(folder / split / f"{number:03d}.png")


def save(folder: pathlib.Path, module, seed: int = 1) -> str:
    """Weights of a module in a folder of their own."""
    shape = (32, 32, 3)
    params = module.init(jax.random.key(seed), jnp.zeros((1, *shape)))["params"]
    save_weights(str(folder), module, shape, jax.tree.map(np.asarray, params))
    return str(folder)


def experiment(weights: pathlib.Path, run: pathlib.Path, **changes) -> DecoderExperiment:
    """The small experiment; `weights` has what `save_all` saved."""
    built = DecoderExperiment(
        latents=RAE(ENCODER, str(weights / "encoder"), DECODER),
        data=ImageFolder(str(weights / "images"), size=24),
        run=RunFolder(str(run), log_every=1, sample_every=4, save_every=2),
        crop=16,
        perceptual=LPIPS(str(weights / "vgg"), network=VGG),
        adversary=Adversary(DINO, str(weights / "dino"), size=16, starts=1, counts=2),
        optimizer=AdamW(learning_rate=1e-3),
        training=Training(steps=4, batch_size=8, ema=(0.9,)),
        held_out=10,
    )
    return dataclasses.replace(built, **changes)


def save_all(folder: pathlib.Path) -> pathlib.Path:
    """All that the experiment reads."""
    for name, module in (("encoder", ENCODER), ("vgg", VGG), ("dino", DINO)):
        save(folder / name, module)
    save_images(folder / "images")
    return folder
