"""DiT in the layout of diffusers' DiTTransformer2DModel.

diffusers spaces the frequencies of the time embedding so that the last is 1 / max_period, where
DiT's own code stops one short. The model that is read computes what diffusers computes; `--model
DiT-XL/2` reads weights that were trained by DiT's code and copied into this layout.
"""

from dit_jax.diffusion import DDPM, ClassifierFree, Gaussian, Sampling
from dit_jax.interop.layout import Layout, Shapes, count_layers
from dit_jax.interop.layouts.dit import found_dit, heads_of, is_plain_dit
from dit_jax.interop.rules import linear, merge_heads, patch_embed, separate_qkv, tensor
from dit_jax.layers.timestep import Sinusoid
from dit_jax.models import DiT

_BLOCKS = "transformer_blocks"


class DiffusersDiTLayout(Layout):
    """Every block has its own copy of the embeddings of time and label; here they are one."""

    name = "diffusers-dit"
    licence = "CC-BY-NC-4.0"
    config = "config.json"
    weights = "diffusion_pytorch_model.safetensors"

    def matches(self, shapes: Shapes) -> bool:
        names = {"pos_embed.proj.weight", "proj_out_1.weight", f"{_BLOCKS}.0.norm1.linear.weight"}
        return names <= shapes.keys()

    def describe(self, shapes, config):
        hidden, channels, patch, _ = shapes["pos_embed.proj.weight"]
        embedder = f"{_BLOCKS}.0.norm1.emb.class_embedder.embedding_table.weight"
        model = DiT(
            patch=patch,
            hidden=hidden,
            depth=count_layers(shapes, _BLOCKS),
            heads=config.get("num_attention_heads", heads_of(hidden)),
            num_classes=shapes[embedder][0] - 1,
            learn_sigma=shapes["proj_out_2.weight"][0] == 2 * channels * patch**2,
            time_features=Sinusoid(endpoint=True),
        )
        side = config.get("sample_size", 32)
        process = Gaussian(variance="learned_range" if model.learn_sigma else "fixed_large")
        sampling = Sampling(DDPM(steps=250), ClassifierFree(scale=1.5, channels=3))
        return found_dit(model, (side, side, channels), process, sampling)

    def exports(self, found):
        model = found.module
        if not isinstance(model, DiT) or not isinstance(model.time_features, Sinusoid):
            return False
        # diffusers embeds the time its own way, whatever the weights were trained with.
        plain = is_plain_dit(model.clone(time_features=Sinusoid()))
        return plain and model.num_classes > 0 and isinstance(found.experiment.process, Gaussian)

    def entries(self, found):
        model = found.module
        block, layer = f"{_BLOCKS}.{{i}}", "blocks/layers"
        embed = f"{block}.norm1.emb"
        copies = {"tied": model.depth}
        projections = [f"{block}.attn1.to_{x}" for x in "qkv"]
        return [
            *patch_embed("pos_embed.proj", "patch_embed", model.patch),
            *linear(f"{embed}.timestep_embedder.linear_1", "time_embed/fc1", **copies),
            *linear(f"{embed}.timestep_embedder.linear_2", "time_embed/fc2", **copies),
            tensor(
                f"{embed}.class_embedder.embedding_table.weight",
                "label_embed/table/embedding",
                **copies,
            ),
            *linear(f"{block}.norm1.linear", f"{layer}/adaln/linear"),
            *separate_qkv(projections, f"{layer}/attention/qkv", model.heads),
            *merge_heads(f"{block}.attn1.to_out.0", f"{layer}/attention/out", model.heads),
            *linear(f"{block}.ff.net.0.proj", f"{layer}/ffn/fc1"),
            *linear(f"{block}.ff.net.2", f"{layer}/ffn/fc2"),
            *linear("proj_out_1", "final/adaln/linear"),
            *linear("proj_out_2", "final/linear"),
        ]

    def write_config(self, found, read):
        del read
        model, (side, _, channels) = found.module, found.inputs[1].shape[1:]
        return {
            "_class_name": "DiTTransformer2DModel",
            "num_attention_heads": model.heads,
            "attention_head_dim": model.hidden // model.heads,
            "in_channels": channels,
            "out_channels": channels * (2 if model.learn_sigma else 1),
            "num_layers": model.depth,
            "sample_size": side,
            "patch_size": model.patch,
            "num_embeds_ada_norm": model.num_classes,
            "norm_eps": 1e-6,
        }
