"""Token mixing: one mechanism a file, one signature for all."""

from dit_jax.attention.clear import CLEAR
from dit_jax.attention.clear_pooled import PooledCLEAR
from dit_jax.attention.dydila import DyDiLA
from dit_jax.attention.full import Full
from dit_jax.attention.grat import GRAT
from dit_jax.attention.linear import LinearAttention
from dit_jax.attention.lit import LiT
from dit_jax.attention.llsa import LLSA
from dit_jax.attention.mixer import TokenMixer
from dit_jax.attention.per_layer import PerLayer
from dit_jax.attention.pisa import PISA
from dit_jax.attention.svg_ear import SVGEAR
from dit_jax.attention.tile_window import TileWindow
from dit_jax.attention.windows import Windows

__all__ = [
    "CLEAR",
    "GRAT",
    "LLSA",
    "PISA",
    "SVGEAR",
    "DyDiLA",
    "Full",
    "LiT",
    "LinearAttention",
    "PerLayer",
    "PooledCLEAR",
    "TileWindow",
    "TokenMixer",
    "Windows",
]
