"""DiT-MoE's own files (feizc/DiT-MoE; Fei et al., arXiv 2407.11633)."""

from dit_jax.diffusion import DDPM, ClassifierFree, Euler, Flow, Gaussian, LogitNormal, Sampling
from dit_jax.interop.layout import Layout, Shapes
from dit_jax.interop.layouts.dit import (
    attention_entries,
    dit_of,
    found_dit,
    frame_entries,
    is_plain_dit,
    sample_shape,
)
from dit_jax.interop.layouts.sit import is_flow
from dit_jax.interop.rules import Entry, Rule, expert_gates, expert_linear, linear, norm, tensor
from dit_jax.layers.mlp import Mlp, SwiGLU
from dit_jax.layers.norm import LayerNorm
from dit_jax.models import DiT
from dit_jax.moe import MoE, SwiGLUExperts
from dit_jax.moe.routers import DiTMoERouter

_BLOCK, _LAYER = "blocks.{i}", "blocks/layers"


class DiTMoELayout(Layout):
    """DiT with a mixture of SwiGLU experts in every block.

    The larger released models, XL and G, have another attention, with normalised queries and keys,
    and are flows; S and B are DiT's diffusion. How many experts a token takes is in no file: 2.
    """

    name = "dit-moe"

    def matches(self, shapes: Shapes) -> bool:
        names = {"blocks.0.moe.gate.weight", "blocks.0.moe.shared_experts.gate_proj.weight"}
        return names <= shapes.keys()

    def describe(self, shapes, config):
        del config
        moe = "blocks.0.moe"
        count, width = shapes[f"{moe}.gate.weight"]
        ffn = MoE(
            DiTMoERouter(experts=count),
            SwiGLUExperts(ratio=shapes[f"{moe}.experts.0.gate_proj.weight"][0] / width),
            SwiGLU(shapes[f"{moe}.shared_experts.gate_proj.weight"][0] / width * 1.5, bias=False),
        )
        model = dit_of(shapes).clone(ffn=ffn)
        process, sampling = Gaussian(), Sampling(DDPM(steps=250), ClassifierFree(1.5, channels=3))
        if "blocks.0.attn.q_norm.weight" in shapes:
            heads = width // shapes["blocks.0.attn.q_norm.weight"][0]
            model = model.clone(heads=heads, qk_norm=LayerNorm())
            process = Flow(time=LogitNormal())
            sampling = Sampling(Euler(steps=50), ClassifierFree(7.0))
        return found_dit(model, sample_shape(shapes), process, sampling)

    def exports(self, found):
        model = found.module
        moe = model.ffn if type(model) is DiT else None
        if not isinstance(moe, MoE) or not isinstance(moe.shared, SwiGLU) or moe.shared.bias:
            return False
        plain = {"ffn": Mlp(), "qk_norm": None}
        gaussian = isinstance(found.experiment.process, Gaussian)
        # What is in no file is what `describe` takes for granted.
        return (
            isinstance(moe.router, DiTMoERouter)
            and moe.router.top_k == 2
            and isinstance(moe.experts, SwiGLUExperts)
            and is_plain_dit(model.clone(**plain))
            and (gaussian if model.qk_norm is None else is_flow(found, data_time=0))
            and model.qk_norm in (None, LayerNorm())
        )

    def entries(self, found):
        model = found.module
        names, norms = ("attn.qkv", "attn.proj"), []
        if model.qk_norm is not None:
            names = ("attn.Wqkv", "attn.out_proj")
            for n in ("q_norm", "k_norm"):
                norms += norm(f"{_BLOCK}.attn.{n}", f"{_LAYER}/attention/{n}")
        return [
            *frame_entries(found),
            *attention_entries(_BLOCK, _LAYER, model.heads, names),
            *norms,
            *_moe_entries(f"{_BLOCK}.moe", f"{_LAYER}/ffn", model.ffn.router.experts),
        ]


def _moe_entries(source: str, path: str, experts: int) -> list[Entry]:
    gates = [
        f"{source}.experts.{j}.{name}" for j in range(experts) for name in ("gate_proj", "up_proj")
    ]
    downs = [f"{source}.experts.{j}.down_proj" for j in range(experts)]
    shared = [f"{source}.shared_experts.{name}.weight" for name in ("gate_proj", "up_proj")]
    return [
        tensor(f"{source}.gate.weight", f"{path}/router/kernel", "e i -> i e"),
        expert_gates(gates, f"{path}/experts/gate_value"),
        *expert_linear(downs, f"{path}/experts/out", bias=False),
        Rule(tuple(shared), f"{path}/shared/gate_value/kernel", "k o i -> i k o"),
        *linear(f"{source}.shared_experts.down_proj", f"{path}/shared/out", bias=False),
    ]
