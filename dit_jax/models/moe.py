"""Diffusion Transformers with mixtures of experts: compositions of DiT, not models of their own."""

from typing import Any

from dit_jax.layers.block import Alternate
from dit_jax.layers.mlp import Mlp, SwiGLU
from dit_jax.layers.norm import LayerNorm
from dit_jax.models.dit import DiT
from dit_jax.moe import MlpExperts, MoE, SwiGLUExperts
from dit_jax.moe.routers import DiTMoERouter, ProMoERouter
from dit_jax.moe.routing import Router


def dit_moe(
    depth: int, hidden: int, heads: int, experts: int, *, qk_norm: bool = False, **fields: Any
) -> DiT:
    """DiT-MoE (Fei et al., arXiv 2407.11633): top 2 SwiGLU experts and a shared one, every block.

    Args:
      depth: number of blocks.
      hidden: width of the tokens; an expert is four times, the shared one twice as wide.
      heads: number of attention heads.
      experts: number of experts.
      qk_norm: layer norm of queries and keys, as in XL and G.
      **fields: other fields of `DiT`.
    """
    shared = SwiGLU(ratio=3.0, bias=False)  # Two thirds of it: two token widths.
    ffn = MoE(DiTMoERouter(experts=experts), SwiGLUExperts(), shared)
    norm = LayerNorm() if qk_norm else None
    return DiT(hidden=hidden, depth=depth, heads=heads, ffn=ffn, qk_norm=norm, **fields)


def promoe(
    depth: int, hidden: int, heads: int, *, router: Router | None = None, **fields: Any
) -> DiT:
    """ProMoE (Wei et al., arXiv 2510.24711): every other block has experts, found by prototypes.

    A token passes one expert and a shared one, each half as wide as a dense perceptron.

    Args:
      depth: number of blocks, even.
      hidden: width of the tokens.
      heads: number of attention heads.
      router: ProMoE's with 12 experts, by default.
      **fields: other fields of `DiT`.
    """
    moe = MoE(router or ProMoERouter(), MlpExperts(ratio=2.0), Mlp(ratio=2.0))
    return DiT(hidden=hidden, depth=depth, heads=heads, ffn=Alternate((Mlp(), moe)), **fields)
