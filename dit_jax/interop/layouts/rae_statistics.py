"""Statistics of latents in representation autoencoders (bytetriper/RAE; arXiv 2510.11690)."""

import jax
import jax.numpy as jnp

from dit_jax.interop.layout import Found, Layout
from dit_jax.interop.rules import tensor
from dit_jax.latents.rae import Normalization


class RAEStatisticsLayout(Layout):
    """The authors' `stat.pt`: mean and variance, for each position and channel."""

    name = "rae-statistics"
    licence = "MIT"

    def matches(self, shapes):
        return shapes.keys() == {"mean", "var"} and len(shapes["mean"]) == 3

    def describe(self, shapes, config):
        del config
        channels, *grid = shapes["mean"]
        return Found(Normalization(), (jax.random.key(0), jnp.zeros((1, *grid, channels))))

    def exports(self, found):
        return isinstance(found.module, Normalization) and found.module.kept == "variance"

    def entries(self, found):
        del found
        order = "c h w -> h w c"
        return [tensor("mean", "mean", order), tensor("var", "variance", order)]
