"""DDT's own files (MCG-NJU/DDT; Wang et al., arXiv 2504.05741).

The file does not say how many of its blocks are the encoder's: of 28 the paper's XL gives it 22, of
12 its B gives it 8 and of 24 its L gives it 20. Another split is chosen by `--model`.
"""

from dit_jax.diffusion import ClassifierFree, Euler, Flow, LogitNormal, Sampling
from dit_jax.errors import InputError
from dit_jax.interop.layout import Layout, Shapes, count_layers
from dit_jax.interop.layouts.dit import found_dit
from dit_jax.interop.layouts.sit import is_flow
from dit_jax.interop.rules import Entry, Rule, fused_qkv, linear, merge_heads, tensor
from dit_jax.models import DDT

_ENCODER_DEPTH = {12: 8, 24: 20, 28: 22}
_CHANNELS = 4


class DDTLayout(Layout):
    """Blocks numbered through encoder and decoder, patches with the channel slowest."""

    name = "ddt"

    def matches(self, shapes: Shapes) -> bool:
        names = {"s_embedder.proj.weight", "blocks.0.adaLN_modulation.0.weight"}
        return names <= shapes.keys()

    def describe(self, shapes, config):
        del config
        hidden, features = shapes["x_embedder.proj.weight"]
        depth = count_layers(shapes, "blocks")
        if depth not in _ENCODER_DEPTH:
            raise InputError(f"a DDT of {depth} blocks: no published model is cut so")
        model = DDT(
            patch=round((features / _CHANNELS) ** 0.5),
            hidden=hidden,
            encoder_depth=_ENCODER_DEPTH[depth],
            decoder_depth=depth - _ENCODER_DEPTH[depth],
            heads=hidden // shapes["blocks.0.attn.q_norm.weight"][0],
            num_classes=shapes["y_embedder.embedding_table.weight"][0] - 1,
        )
        process = Flow(time=LogitNormal(), data_time=1)
        # The published figures at 256 px: guided in time 0.3 to 1 of its clock.
        guidance = ClassifierFree(scale=2.0, interval=(0.0, 0.7))
        sampling = Sampling(Euler(steps=250), guidance)
        return found_dit(model, (32, 32, _CHANNELS), process, sampling)

    def exports(self, found):
        model = found.module
        known = isinstance(model, DDT) and model.num_classes > 0
        return known and is_flow(found, data_time=1)

    def entries(self, found):
        model = found.module
        sizes = (("p", model.patch), ("q", model.patch))
        pixels = {"sizes": sizes}
        return [
            *_patches("s_embedder.proj", "encoder_embed", **pixels),
            *_patches("x_embedder.proj", "decoder_embed", **pixels),
            *linear("t_embedder.mlp.0", "time_embed/fc1"),
            *linear("t_embedder.mlp.2", "time_embed/fc2"),
            tensor("y_embedder.embedding_table.weight", "label_embed/table/embedding"),
            *_blocks("encoder/layers", model.heads, first=0),
            *_blocks("decoder/layers", model.heads, first=model.encoder_depth),
            tensor(
                "final_layer.linear.weight",
                "final/linear/kernel",
                "(c p q) i -> i (p q c)",
                **pixels,
            ),
            tensor("final_layer.linear.bias", "final/linear/bias", "(c p q) -> (p q c)", **pixels),
            *linear("final_layer.adaLN_modulation.0", "final/adaln/linear"),
        ]


def _patches(source: str, path: str, **options) -> list[Entry]:
    kernel = tensor(f"{source}.weight", f"{path}/kernel", "d (c p q) -> (p q c) d", **options)
    return [kernel, tensor(f"{source}.bias", f"{path}/bias")]


def _blocks(path: str, heads: int, first: int) -> list[Entry]:
    block, numbered = "blocks.{i}", {"first": first}
    gate_value = (f"{block}.mlp.w1.weight", f"{block}.mlp.w3.weight")
    norms = ("norm1", "norm2", "attn.q_norm", "attn.k_norm")
    return [
        *fused_qkv(f"{block}.attn.qkv", f"{path}/attention/qkv", heads, bias=False, **numbered),
        *merge_heads(f"{block}.attn.proj", f"{path}/attention/out", heads, **numbered),
        *(
            tensor(f"{block}.{n}.weight", f"{path}/{_norm_path(n)}/scale", **numbered)
            for n in norms
        ),
        Rule(gate_value, f"{path}/ffn/gate_value/kernel", "two h i -> i two h", **numbered),
        *linear(f"{block}.mlp.w2", f"{path}/ffn/out", bias=False, **numbered),
        *linear(f"{block}.adaLN_modulation.0", f"{path}/adaln/linear", **numbered),
    ]


def _norm_path(name: str) -> str:
    return name.replace("attn.", "attention/")
