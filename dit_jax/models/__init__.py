"""Whole backbones, one family a file."""

from dit_jax.models.ddt import DDT
from dit_jax.models.dit import DiT
from dit_jax.models.dit_dh import DiTDH
from dit_jax.models.moe import dit_moe, promoe
from dit_jax.models.output import Output
from dit_jax.models.pt_dit import PTDiT
from dit_jax.models.switch_dit import SwitchDiT

__all__ = ["DDT", "DiT", "DiTDH", "Output", "PTDiT", "SwitchDiT", "dit_moe", "promoe"]
