"""Token mixing: one mechanism a file, one signature for all."""

from dit_jax.attention.full import Full
from dit_jax.attention.mixer import TokenMixer

__all__ = ["Full", "TokenMixer"]
