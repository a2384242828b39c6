"""Latents to zero mean and unit variance, a position and a channel at a time."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError

from dit_jax.errors import InputError

_EPS = 1e-5


class Normalization(nn.Module):
    """What is known of the latents of a data set (`python -m dit_jax latent-stats`).

    Attributes:
      kept: its parameter beside the `mean`: the variance, as the authors keep it, whose root is
        taken after adding 1e-5; or the deviation, as diffusers does, to which 1e-5 is added.
    """

    kept: Literal["variance", "deviation"] = "variance"

    @nn.compact
    def __call__(self, latents: jax.Array, inverse: bool = False) -> jax.Array:
        """Normalises latents [B, h, w, C], float32, or turns normalised ones back.

        Raises:
          InputError: the statistics are of another grid or another encoder.
        """
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        try:
            mean = self.param("mean", zeros, latents.shape[1:])
            spread = self.param(self.kept, ones, latents.shape[1:])
        except ScopeParamShapeError as error:
            raise InputError(
                f"the latents' statistics are not of shape {latents.shape[1:]}: make them for "
                f"this image size and encoder with `python -m dit_jax latent-stats`"
            ) from error
        scale = jnp.sqrt(spread + _EPS) if self.kept == "variance" else spread + _EPS
        return latents * scale + mean if inverse else (latents - mean) / scale
