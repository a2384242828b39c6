"""SigLIP and SigLIP 2 as transformers keeps them (arXiv 2303.15343 and 2502.14786)."""

from dit_jax.interop.layouts.vision import Names, VisionLayout
from dit_jax.latents.rae.encoders import SigLIP


class SigLIPLayout(VisionLayout):
    """SiglipVisionModel, and the image tower of a SiglipModel.

    SigLIP 2's files of a fixed resolution, such as google/siglip2-base-patch16-256, are of these
    classes too; those of its Siglip2Model, for any resolution, are not known here.
    """

    name = "siglip"
    encoder = SigLIP
    names = {
        "released": Names(
            "encoder.layers.{i}",
            ("layer_norm1", "layer_norm2"),
            tuple(f"self_attn.{name}_proj" for name in "qkv"),
            "self_attn.out_proj",
            ("mlp.fc1", "mlp.fc2"),
            final="post_layernorm",
            patch="embeddings.patch_embedding",
            position="embeddings.position_embedding.weight",
            cls=None,
        )
    }
    # With the prefix also what transformers 4 made of the image tower alone.
    prefixes = ("", "vision_model.")
    marks = ("embeddings.patch_embedding.bias", "post_layernorm.weight")
    foreign = ("embeddings.class_embedding", "pre_layrnorm")
    unused = {r"head\..*": "pools the patches into one vector"}
    around = {
        r"text_model\..*": "reads the captions",
        r"logit_(scale|bias)": "compares images with captions",
    }
    kinds = ("siglip_vision_model", "siglip")
    approximate = True
    heads = {1152: 16, 1536: 16}  # So400m and giant-opt.

    def settings(self, config):
        return config.get("vision_config", config)

    def make_config(self, module, keys):
        return {
            **super().make_config(module, keys),
            "architectures": ["SiglipVisionModel"],
            "intermediate_size": module.ffn.width,
            "vision_use_head": any(
                key.removeprefix("vision_model.") == "head.probe" for key in keys
            ),
        }
