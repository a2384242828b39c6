"""Channel mixing by mixtures of experts."""

from dit_jax.moe.experts import LinearExperts, MlpExperts, SwiGLUExperts
from dit_jax.moe.layer import MoE
from dit_jax.moe.routing import Router, Routing

__all__ = ["LinearExperts", "MlpExperts", "MoE", "Router", "Routing", "SwiGLUExperts"]
