"""ViT-MAE as transformers keeps it (He et al., arXiv 2111.06377)."""

from dit_jax.interop.layouts.vision import Names, VisionLayout
from dit_jax.latents.rae.encoders import MAE

_NORMS = ("layernorm_before", "layernorm_after")


class ViTMAELayout(VisionLayout):
    """ViTMAEModel, and the encoder of a ViTMAEForPreTraining.

    A ViTModel without a pooler has the same keys and is the same network, but for what its
    configuration says: with one that names it, it is refused.
    """

    name = "vit-mae"
    licence = "CC-BY-NC-4.0 in the authors' repository, Apache-2.0 on the Hugging Face hub"
    encoder = MAE
    names = {
        "released": Names(
            "encoder.layer.{i}",
            _NORMS,
            tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
            "attention.output.dense",
            ("intermediate.dense", "output.dense"),
        ),
        # State dicts in memory; the files that version saves are like the released ones.
        "transformers 5": Names(
            "layers.{i}",
            _NORMS,
            tuple(f"attention.{name}_proj" for name in "qkv"),
            "attention.o_proj",
            ("mlp.fc1", "mlp.fc2"),
        ),
    }
    prefixes = ("", "vit.")
    marks = ("embeddings.cls_token", "layernorm.weight")
    foreign = (
        "embeddings.mask_token",
        "embeddings.distillation_token",
        "embeddings.detection_tokens",
        "embeddings.register_tokens",
        "pooler.",
        "encoder.layer.0.layer_scale",
        "encoder.layer.0.lambda_",
    )
    around = {r"decoder\..*": "reconstructs masked patches in MAE's own training"}
    kinds = ("vit_mae",)
    heads = {1280: 16}  # ViT-H.

    def make_config(self, module, keys):
        return {
            **super().make_config(module, keys),
            "architectures": ["ViTMAEModel"],
            "intermediate_size": module.ffn.width,
        }
