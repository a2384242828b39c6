"""An autoencoder of digits, small and not trained, and a configuration that encodes with it."""

import pathlib

import jax
import jax.numpy as jnp

from dit_jax.latents import VAE
from dit_jax.latents.vae import AutoencoderKL
from dit_jax.storage import weights as storage

MODEL = AutoencoderKL((8, 16), layers=1, latent_channels=2, image_channels=1, groups=4)

CONFIG = """
import dataclasses
from tests.encoding.small import space
from tests.training.tiny import experiment

experiment = experiment("unset")
experiment = dataclasses.replace(experiment, latents=space({weights!r}))
"""


def space(weights: str | None) -> VAE:
    return VAE(weights, MODEL, scale=0.5, shift=0.25)


def save_weights(folder: pathlib.Path, factor: float = 1.0) -> str:
    """Writes weights as a conversion would; `factor` multiplies them."""
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))["params"]
    params = jax.tree.map(lambda leaf: factor * leaf, params)
    storage.save_weights(str(folder), MODEL, (2, 2, 1), params)
    return str(folder)


def write_config(folder: pathlib.Path, weights: str) -> pathlib.Path:
    path = folder / "small.py"
    path.write_text(CONFIG.format(weights=weights))
    return path
