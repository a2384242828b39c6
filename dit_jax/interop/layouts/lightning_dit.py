"""LightningDiT's own files (hustvl/LightningDiT; Yao et al., arXiv 2501.01423)."""

import numpy as np

from dit_jax.diffusion import ClassifierFree, Euler, Flow, LogitNormal, Sampling
from dit_jax.interop.layout import Layout, Shapes, count_layers
from dit_jax.interop.layouts.dit import found_dit, sample_shape
from dit_jax.interop.layouts.sit import is_flow
from dit_jax.interop.rules import (
    Entry,
    Fixed,
    fused_qkv,
    linear,
    merge_heads,
    patch_embed,
    tensor,
)
from dit_jax.layers.mlp import SwiGLU
from dit_jax.layers.norm import RMSNorm
from dit_jax.layers.patch import patch_grid
from dit_jax.layers.position import sincos_2d
from dit_jax.layers.rope import AxialRope
from dit_jax.models import DiT

COMPUTED = "sines that the model computes"
_NORMS = ("norm1", "norm2")
_GATE_VALUE = (
    ("weight", "kernel", "(two h) i -> i two h"),
    ("bias", "bias", "(two h) -> two h"),
)
_PARTS = {"ffn": SwiGLU(), "norm": "rms", "rope": AxialRope()}


class LightningDiTLayout(Layout):
    """DiT with RMSNorm, SwiGLU and RoPE, on a flow whose time runs from noise to data."""

    name = "lightning-dit"
    licence = "MIT"

    def matches(self, shapes: Shapes) -> bool:
        names = {"feat_rope.freqs_cos", "blocks.0.mlp.w12.weight", "final_layer.norm_final.weight"}
        return names <= shapes.keys() and "s_embedder.proj.weight" not in shapes

    def describe(self, shapes, config):
        del config
        hidden, channels, patch, _ = shapes["x_embedder.proj.weight"]
        model = DiT(
            patch=patch,
            hidden=hidden,
            depth=count_layers(shapes, "blocks"),
            heads=hidden // shapes["feat_rope.freqs_cos"][1],
            num_classes=shapes["y_embedder.embedding_table.weight"][0] - 1,
            learn_sigma=shapes["final_layer.linear.weight"][0] == 2 * channels * patch**2,
            qk_norm=RMSNorm() if "blocks.0.attn.q_norm.weight" in shapes else None,
            **_PARTS,
        )
        # The published figures: times shifted in sampling alone, 3 channels guided, but not at the
        # noisiest eighth.
        process = Flow(time=LogitNormal(), shift=1 / 0.3, data_time=1)
        guidance = ClassifierFree(scale=6.7, interval=(0.0, 0.875), channels=3)
        return found_dit(model, sample_shape(shapes), process, Sampling(Euler(steps=250), guidance))

    def exports(self, found):
        model = found.module
        alike = type(model) is DiT and model.clone(**_PARTS) == model
        alike = alike and model.qk_norm in (None, RMSNorm())
        return alike and model.num_classes > 0 and is_flow(found, data_time=1)

    def entries(self, found):
        model = found.module
        grid = patch_grid(found.inputs[1].shape, model.patch)
        block, layer = "blocks.{i}", "blocks/layers"
        norms = []
        if model.qk_norm is not None:
            norms += [(f"{block}.attn.{n}", f"{layer}/attention/{n}") for n in ("q_norm", "k_norm")]
        return [
            *patch_embed("x_embedder.proj", "patch_embed", model.patch),
            *linear("t_embedder.mlp.0", "time_embed/fc1"),
            *linear("t_embedder.mlp.2", "time_embed/fc2"),
            tensor("y_embedder.embedding_table.weight", "label_embed/table/embedding"),
            *block_entries(layer, model.heads),
            *(tensor(f"{source}.weight", f"{path}/scale") for source, path in norms),
            tensor("final_layer.norm_final.weight", "final/norm/scale"),
            *linear("final_layer.linear", "final/linear"),
            *linear("final_layer.adaLN_modulation.1", "final/adaln/linear"),
            Fixed("pos_embed", sincos_2d(grid, model.hidden)[None], COMPUTED),
            *rope_entries("feat_rope", model.rope.angles(grid, model.hidden // model.heads)),
        ]


def block_entries(layer: str, heads: int, first: int = 0) -> list[Entry]:
    """Rules for blocks, the first of which has that number in the file."""
    block, options = "blocks.{i}", {"first": first}
    norms = (tensor(f"{block}.{n}.weight", f"{layer}/{n}/scale", **options) for n in _NORMS)
    return [
        *fused_qkv(f"{block}.attn.qkv", f"{layer}/attention/qkv", heads, **options),
        *merge_heads(f"{block}.attn.proj", f"{layer}/attention/out", heads, **options),
        *norms,
        *(
            tensor(
                f"{block}.mlp.w12.{leaf}",
                f"{layer}/ffn/gate_value/{name}",
                pattern,
                sizes=(("two", 2),),
                **options,
            )
            for leaf, name, pattern in _GATE_VALUE
        ),
        *linear(f"{block}.mlp.w3", f"{layer}/ffn/out", **options),
        *linear(f"{block}.adaLN_modulation.1", f"{layer}/adaln/linear", **options),
    ]


def rope_entries(source: str, angles: np.ndarray) -> list[Entry]:
    """The tables of a rotary embedding, each angle for both features of its pair."""
    angles = np.repeat(angles, 2, axis=1)
    tables = (("cos", np.cos(angles)), ("sin", np.sin(angles)))
    return [Fixed(f"{source}.freqs_{name}", table, COMPUTED) for name, table in tables]
