"""Routers, a paper a file: which token meets which expert."""

from dit_jax.moe.routers.dense2moe import Dense2MoERouter
from dit_jax.moe.routers.diffmoe import DiffMoERouter
from dit_jax.moe.routers.dit_moe import DiTMoERouter
from dit_jax.moe.routers.expert_choice import ExpertChoiceRouter
from dit_jax.moe.routers.loss_free import LossFreeRouter
from dit_jax.moe.routers.promoe import ProMoEExpertChoiceRouter, ProMoERouter
from dit_jax.moe.routers.switch import SwitchRouter
from dit_jax.moe.routers.top_k import TopKRouter

__all__ = [
    "Dense2MoERouter",
    "DiTMoERouter",
    "DiffMoERouter",
    "ExpertChoiceRouter",
    "LossFreeRouter",
    "ProMoEExpertChoiceRouter",
    "ProMoERouter",
    "SwitchRouter",
    "TopKRouter",
]
