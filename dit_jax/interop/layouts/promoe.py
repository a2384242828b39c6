"""ProMoE's own files (ali-vilab/ProMoE; Wei et al., arXiv 2510.24711)."""

from dit_jax.diffusion import ClassifierFree, Euler, Flow, LogitNormal, Sampling
from dit_jax.interop.layout import Layout, Shapes
from dit_jax.interop.layouts.dit import (
    attention_entries,
    dit_of,
    found_dit,
    frame_entries,
    is_plain_dit,
    mlp_entries,
    sample_shape,
)
from dit_jax.interop.layouts.sit import is_flow
from dit_jax.interop.rules import Entry, expert_linear, norm, tensor
from dit_jax.layers.block import Alternate
from dit_jax.layers.mlp import Mlp
from dit_jax.layers.norm import LayerNorm
from dit_jax.models import DiT
from dit_jax.moe import MlpExperts, MoE
from dit_jax.moe.routers import ProMoERouter

_TIME_SCALE = 1000.0
_QK_NORM = LayerNorm(eps=1e-5)


class ProMoELayout(Layout):
    """DiT with experts in every other block, on a flow whose clock counts to 1000.

    Files of the variant whose experts choose have the same keys: this reads them as the released
    models, whose tokens choose, one expert each.
    """

    name = "promoe"
    licence = "MIT"

    def matches(self, shapes: Shapes) -> bool:
        names = {"blocks.1.mlp.cluster_centers", "blocks.1.mlp.shared_expert.up_proj.weight"}
        return names <= shapes.keys()

    def describe(self, shapes, config):
        del config
        moe = "blocks.1.mlp"
        count, width = shapes[f"{moe}.cluster_centers"]
        ffn = MoE(
            ProMoERouter(experts=count),
            MlpExperts(ratio=shapes[f"{moe}.experts.0.up_proj.weight"][0] / width),
            Mlp(ratio=shapes[f"{moe}.shared_expert.up_proj.weight"][0] / width),
        )
        normalised = "blocks.0.attn.q_norm.weight" in shapes
        model = dit_of(shapes).clone(
            ffn=Alternate((Mlp(), ffn)), qk_norm=_QK_NORM if normalised else None
        )
        process = Flow(time=LogitNormal(), time_scale=_TIME_SCALE)
        sampling = Sampling(Euler(steps=250), ClassifierFree(1.5))
        return found_dit(model, sample_shape(shapes), process, sampling)

    def exports(self, found):
        model = found.module
        if type(model) is not DiT or not isinstance(model.ffn, Alternate):
            return False
        first, *rest = model.ffn.mixers
        return (
            first == Mlp()
            and len(rest) == 1
            and isinstance(rest[0], MoE)
            and isinstance(rest[0].router, ProMoERouter)
            and rest[0].router.top_k == 1
            and isinstance(rest[0].experts, MlpExperts)
            and isinstance(rest[0].shared, Mlp)
            and model.qk_norm in (None, _QK_NORM)
            and is_plain_dit(model.clone(ffn=Mlp(), qk_norm=None))
            and is_flow(found, data_time=0, time_scale=_TIME_SCALE)
        )

    def entries(self, found):
        model = found.module
        rules = frame_entries(found)
        for number in (0, 1):
            block, layer = "blocks.{i}", f"blocks/layers/blocks_{number}"
            options = {"first": number, "step": 2}
            rules += attention_entries(block, layer, model.heads, **options)
            if model.qk_norm is not None:
                for n in ("q_norm", "k_norm"):
                    rules += norm(f"{block}.attn.{n}", f"{layer}/attention/{n}", **options)
            if number == 0:
                rules += mlp_entries(f"{block}.mlp", f"{layer}/ffn", **options)
            else:
                router = model.ffn.mixers[1].router
                rules += _moe_entries(f"{block}.mlp", f"{layer}/ffn", router.count, **options)
        return rules


def _moe_entries(source: str, path: str, experts: int, **options: int) -> list[Entry]:
    names = ("up_proj", "down_proj")
    up, down = ([f"{source}.experts.{j}.{name}" for j in range(experts)] for name in names)
    return [
        tensor(f"{source}.cluster_centers", f"{path}/router/prototypes", **options),
        *expert_linear(up, f"{path}/experts/fc1", bias=True, **options),
        *expert_linear(down, f"{path}/experts/fc2", bias=True, **options),
        *mlp_entries(f"{source}.shared_expert", f"{path}/shared", names, **options),
    ]
