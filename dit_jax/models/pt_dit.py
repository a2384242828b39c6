"""PT-DiT: Proxy-Tokenized Diffusion Transformer (Wang et al., Qihoo-T2X, arXiv 2409.04005)."""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax

from dit_jax.attention import Windows
from dit_jax.attention.per_layer import layer_ranges
from dit_jax.errors import InputError
from dit_jax.kernels.cells import Cells, split
from dit_jax.layers.attention import CrossAttention, SelfAttention, unbound
from dit_jax.layers.context import Context
from dit_jax.layers.modulation import AdaLN, modulate
from dit_jax.layers.norm import Norm, norm
from dit_jax.models.dit import DiT


@dataclasses.dataclass(frozen=True)
class Proxies:
    """One token for each window of a grid; at the grid's end a window may hold fewer than others.

    Attributes:
      window: tokens on each axis that a proxy stands for.
      token: what it is: the mean of the window's tokens, or the first of them.
    """

    window: tuple[int, ...] = (2, 2)
    token: Literal["mean", "first"] = "mean"

    def __call__(self, x: jax.Array, grid: tuple[int, ...]) -> tuple[jax.Array, tuple[int, ...]]:
        """Takes the proxies [B, P, D], and the grid that they lie on, from tokens [B, N, D].

        Raises:
          InputError: the tokens are not those of `grid` alone, the window does not fit it, or there
            is no such token.
        """
        if self.token not in ("mean", "first"):
            raise InputError(f"a proxy is a window's 'mean' or 'first' token, not {self.token!r}")
        if x.shape[1] != math.prod(grid):
            raise InputError(f"proxies stand for the tokens of a grid {grid}, not for {x.shape[1]}")
        cells = Cells(tuple(grid), (tuple(self.window),))
        tokens, means = split(x[:, :, None], cells, means=True)
        found = means if self.token == "mean" else tokens[:, :, :: math.prod(self.window)]
        return found[:, 0], cells.counts


class GlobalInteraction(nn.Module):
    """What tokens learn from proxies that have seen each other.

        p = proxies(x)
        p = p + attention(norm(p))
        cross(norm(x), norm(p))

    Attributes:
      proxies: maps (tokens, grid) to (proxies, grid).
      attention: among proxies, a module mapping (tokens, grid) to tokens.
      cross: of tokens to proxies, a module mapping (tokens, proxies) to tokens.
      norm: kind of norm.
    """

    proxies: Proxies
    attention: nn.Module
    cross: nn.Module
    norm: Norm = "layer"

    @nn.compact
    def __call__(self, x: jax.Array, grid: tuple[int, ...]) -> jax.Array:
        """Maps tokens [B, N, D] to what is to be added to them, [B, N, D]."""
        p, proxy_grid = self.proxies(x, grid)
        p = p + self.attention(norm(self.norm, p, "proxy_norm"), proxy_grid)
        return self.cross(norm(self.norm, x, "token_norm"), norm(self.norm, p, "seen_norm"))


class ProxyBlock(nn.Module):
    """A block of PT-DiT: proxies for what is global, two kinds of windows for what is fine.

    Attributes:
      interaction: a module mapping (tokens, grid) to what is added to them.
      attention: within windows, a module mapping (tokens, grid) to tokens.
      shifted: within shifted windows, likewise.
      ffn: channel mixing, a module mapping (tokens, context) to (tokens, aux).
      norm: kind of norm.
      adaln: nine modulation vectors from the condition.
    """

    interaction: nn.Module
    attention: nn.Module
    shifted: nn.Module
    ffn: nn.Module
    norm: Norm = "layer"
    adaln: nn.Module = dataclasses.field(default_factory=lambda: AdaLN(9, parent=None))

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        """Maps tokens [B, N, D] to tokens [B, N, D] and the channel mixer's aux."""
        shift1, scale1, gate1, shift2, scale2, gate2, shift3, scale3, gate3 = self.adaln(
            context.vector
        )
        x = x + self.interaction(x, context.grid)
        y = modulate(norm(self.norm, x, "norm1"), shift1, scale1)
        x = x + gate1 * self.attention(y, context.grid)
        y = modulate(norm(self.norm, x, "norm2"), shift2, scale2)
        x = x + gate2 * self.shifted(y, context.grid)
        y = modulate(norm(self.norm, x, "norm3"), shift3, scale3)
        mixed, aux = self.ffn(y, context)
        return x + gate3 * mixed, aux


class PTDiT(DiT):
    """DiT whose tokens see each other within windows alone, and proxies of all windows besides.

    This is a kind of block, not a token mixer: its four attentions, among proxies, to proxies, in
    windows and in shifted windows, follow each other, with projections and residuals of their own,
    in the paper as in the authors' code (mindspeed_mm/models/predictor/dits/pt_dit_diffusers.py of
    Ascend/MindSpeed-MM). What is different here:

    * The rest is DiT: labels where theirs are texts that tokens attend to, and modulations that
      each block makes for itself (adaLN-Zero), with three vectors for the shifted windows.
    * Those gates start at zero. So of the projections only that of the attention to proxies does,
      which has no gate: a zero behind a gate of zero would never move. (The authors' zeros are
      further linear layers behind projections, of these and of the shifted windows.)
    * The tokens of one proxy lie together. Those of the code are a stride apart where a window
      holds several proxies, which is not so in the released model.
    * No proxies are drawn at random, as in the paper's first version.

    The released model, for 64 x 64 tokens, has proxies and windows of 8 x 8 tokens.

    Attributes:
      attention: token mixer of the proxies.
      qk_norm: norm of queries and keys, in all four attentions.
      rope: rotary position embedding within windows; proxies have none.
      proxies: what stands for the tokens far away.
      window: tokens of a window on each axis.
    """

    proxies: Proxies = dataclasses.field(default_factory=Proxies)
    window: tuple[int, ...] = (8, 8)

    def block_with(self, ffn):
        def qk_norm() -> nn.Module | None:
            return self.qk_norm and self.qk_norm.clone(parent=None, name=None)

        def within(windows: Windows) -> SelfAttention:
            return SelfAttention(self.heads, windows, qk_norm(), self.rope, parent=None)

        mixer = unbound(layer_ranges(self.attention, self.depth)[0][0])
        return ProxyBlock(
            GlobalInteraction(
                self.proxies,
                SelfAttention(self.heads, mixer, qk_norm(), parent=None),
                CrossAttention(self.heads, qk_norm(), initial="zero", parent=None),
                self.norm,
                parent=None,
            ),
            within(Windows(self.window)),
            within(Windows(self.window, shifted=True)),
            ffn.clone(parent=None, name=None),
            self.norm,
            parent=None,
        )
