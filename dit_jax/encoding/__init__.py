"""Passes of a frozen encoder over a data set: its latents in files, and their statistics."""

from dit_jax.encoding.cache import Cache
from dit_jax.encoding.statistics import write_statistics
from dit_jax.encoding.writer import Written, write_cache

__all__ = ["Cache", "Written", "write_cache", "write_statistics"]
