"""DINO's vision transformers as their authors keep them (Caron et al., arXiv 2104.14294)."""

import math
import re

import jax
import jax.numpy as jnp

from dit_jax.interop.layout import Found, Layout, agreed_length, count_layers
from dit_jax.interop.rules import Carried, fused_qkv, linear, merge_heads, norm, patch_embed, tensor
from dit_jax.latents.rae.encoders import Perceptron
from dit_jax.latents.rae.encoders.dino import Dino

# Before a backbone's keys in the checkpoints of a whole training, whose teacher is an average.
_PREFIXES = ("", "backbone.")
_MARKS = ("cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "norm.weight")
# DINOv2's own files, MAE's with its decoder, and classifiers.
_FOREIGN = ("mask_token", "dist_token", "blocks.0.ls1", "head", "fc_norm")


class DINOLayout(Layout):
    """A backbone alone, or the teacher's or student's in a checkpoint of a whole training.

    A discriminator looks at the tokens after the quarters of its depth, before the last norm, which
    is kept aside. RAE's code puts zeros for the bias of the keys; softmax does not see that bias,
    so it stays as it is in the file here.

    Other encoders have the same keys: those of MAE's authors, timm's of DINO. Nothing in a file
    says how it was trained; heads are taken to be 64 wide, as all of DINO's are.
    """

    name = "dino"
    licence = "Apache-2.0"

    def matches(self, shapes):
        return any(
            {prefix + mark for mark in _MARKS} <= shapes.keys()
            and len(shapes.get(f"{prefix}patch_embed.proj.weight", ())) == 4
            and not any(key.startswith(tuple(prefix + name for name in _FOREIGN)) for key in shapes)
            for prefix in _PREFIXES
        )

    def describe(self, shapes, config):
        del config
        prefix = next(p for p in _PREFIXES if f"{p}cls_token" in shapes)
        layers = re.escape(f"{prefix}blocks.") + r"\d+\."
        hidden = agreed_length(shapes, {rf"{layers}norm\d\.\w+": 0})
        width = agreed_length(
            shapes, {rf"{layers}mlp\.fc1\.\w+": 0, rf"{layers}mlp\.fc2\.weight": 1}
        )
        depth = count_layers(shapes, f"{prefix}blocks")
        patch = shapes[f"{prefix}patch_embed.proj.weight"][-1]
        module = Dino(
            patch=patch,
            hidden=hidden,
            depth=depth,
            heads=max(hidden // 64, 1),
            ffn=Perceptron(width, approximate=True),
            image_size=patch * math.isqrt(shapes[f"{prefix}pos_embed"][1] - 1),
            tapped=tuple(sorted({math.ceil(depth * i / 4) - 1 for i in range(1, 5)})),
        )
        images = jnp.zeros((1, module.image_size, module.image_size, 3))
        return Found(module, (jax.random.key(0), images), notes={"prefix": prefix})

    def exports(self, found):
        return type(found.module) is Dino and isinstance(found.module.ffn, Perceptron)

    def entries(self, found):
        module, prefix = found.module, found.notes.get("prefix", "")
        layer, path = f"{prefix}blocks.{{i}}", "blocks/layers"
        return [
            *patch_embed(f"{prefix}patch_embed.proj", "patch_embed", module.patch),
            tensor(f"{prefix}cls_token", "cls", "1 1 d -> 1 d"),
            tensor(f"{prefix}pos_embed", "position", "1 n d -> n d"),
            *norm(f"{layer}.norm1", f"{path}/norm1"),
            *fused_qkv(f"{layer}.attn.qkv", f"{path}/attention/qkv", module.heads),
            *merge_heads(f"{layer}.attn.proj", f"{path}/attention/out", module.heads),
            *norm(f"{layer}.norm2", f"{path}/norm2"),
            *linear(f"{layer}.mlp.fc1", f"{path}/ffn/fc1"),
            *linear(f"{layer}.mlp.fc2", f"{path}/ffn/fc2"),
            Carried(rf"{re.escape(prefix)}norm\.(weight|bias)", "the last norm, which is skipped"),
            Carried(r"head\..*", "a head of DINO's own training"),
        ]
