"""Whole backbones, one family a file."""

from dit_jax.models.dit import DiT
from dit_jax.models.output import Output

__all__ = ["DiT", "Output"]
