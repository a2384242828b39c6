"""Channel mixing by mixtures of experts."""

from dit_jax.moe.experts import MlpExperts, SwiGLUExperts
from dit_jax.moe.layer import MoE
from dit_jax.moe.routing import Router, Routing

__all__ = ["MlpExperts", "MoE", "Router", "Routing", "SwiGLUExperts"]
