"""Models of two halves: a condition encoder, and a velocity decoder that its tokens modulate.

DDT (arXiv 2504.05741) and DiT-DH (arXiv 2510.11690). The encoder is the costly half, which samplers
may leave out at some steps.
"""

from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.layers.block import FinalLayer
from dit_jax.layers.context import Context
from dit_jax.layers.linear import linear
from dit_jax.layers.norm import Norm
from dit_jax.layers.patch import patch_grid, patchify, unpatchify
from dit_jax.layers.stack import Remat, Stack
from dit_jax.models.output import Output


@runtime_checkable
class Decoupled(Protocol):
    """A model of two halves: the whole is `decode(x, encode(x, t, condition, train), train)`."""

    def encode(
        self, x: jax.Array, t: jax.Array, condition: dict[str, jax.Array], train: bool = False
    ) -> jax.Array:
        """Maps what the model takes to tokens [B, N, D]."""

    def decode(self, x: jax.Array, s: jax.Array, train: bool = False) -> Output:
        """Maps images [B, H, W, C] and such tokens, maybe an earlier step's, to the prediction."""


class VelocityDecoder(nn.Module):
    """The half that runs at every step.

    A module has one compact method, which a model of two halves spends on its encoder: this is a
    module within it, whose parameters `nn.share_scope` puts beside the encoder's.

    Attributes:
      patch: side of a square patch.
      hidden: width of the tokens.
      block: one of its blocks.
      depth: number of blocks.
      remat: what the backward pass recomputes.
      norm: kind of the last norm.
      adaln: two modulation vectors for it.
    """

    patch: int
    hidden: int
    block: nn.Module
    depth: int
    remat: Remat
    norm: Norm
    adaln: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, s: jax.Array, train: bool) -> Output:
        """Maps images [B, H, W, C] and condition [B, N, hidden] to velocities, float32."""
        grid = patch_grid(x.shape, self.patch)
        patches = patchify(x, self.patch).astype(s.dtype)
        tokens = linear(self.hidden, patches, "decoder_embed")
        decoder = Stack(self.block, self.depth, self.remat, name="decoder")
        tokens, _ = decoder(tokens, Context(s, None, None, None, grid, train))
        adaln = self.adaln.clone(parent=None, name=None)
        tokens = FinalLayer(self.patch**2 * x.shape[-1], self.norm, adaln, name="final")(tokens, s)
        return Output(unpatchify(tokens, grid, self.patch).astype(jnp.float32), {})


def check_decoupled(model: Any) -> None:
    """Raises InputError where a model has no encoder whose output could be shared."""
    if not isinstance(model, Decoupled):
        raise InputError(
            f"{type(model).__name__} has no condition encoder to share: leave sharing out, or take "
            "a DDT or a DiTDH"
        )
