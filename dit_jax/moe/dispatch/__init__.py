"""How tokens travel to experts and back: three ways that agree."""

from dit_jax.moe.dispatch.capacity import Capacity
from dit_jax.moe.dispatch.dispatch import Dispatch
from dit_jax.moe.dispatch.ragged import Ragged
from dit_jax.moe.dispatch.reference import Reference

__all__ = ["Capacity", "Dispatch", "Ragged", "Reference"]
