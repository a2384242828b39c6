"""Whole backbones, one family a file."""

from dit_jax.models.ddt import DDT
from dit_jax.models.dit import DiT
from dit_jax.models.moe import dit_moe, promoe
from dit_jax.models.output import Output

__all__ = ["DDT", "DiT", "Output", "dit_moe", "promoe"]
