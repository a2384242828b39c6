"""No latent space: pixels in [-1, 1]."""

import dataclasses

import jax.numpy as jnp

from dit_jax.latents.latents import Latents


@dataclasses.dataclass(frozen=True)
class Pixels(Latents):
    """Images themselves, from uint8 to [-1, 1]."""

    @property
    def decodes(self):
        return True

    def shape(self, source):
        return source

    def store(self, params, images):
        del params
        return images.astype(jnp.float32) / 127.5 - 1

    def decode(self, params, x):
        return x
