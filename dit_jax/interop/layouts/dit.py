"""DiT's own files (facebookresearch/DiT; Peebles & Xie, arXiv 2212.09748)."""

import math
from typing import Any

import flax.linen as nn

from dit_jax.attention import Full
from dit_jax.data import Absent
from dit_jax.diffusion import DDPM, ClassifierFree, Gaussian, Process, Sampling
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.interop.layout import Found, Layout, Shapes, count_layers
from dit_jax.interop.rules import (
    Entry,
    Fixed,
    fused_qkv,
    linear,
    merge_heads,
    patch_embed,
    tensor,
)
from dit_jax.latents import VAE, Cached
from dit_jax.layers.mlp import Mlp
from dit_jax.layers.patch import patch_grid
from dit_jax.layers.position import sincos_2d
from dit_jax.layers.timestep import Sinusoid
from dit_jax.models import DiT
from dit_jax.models.inputs import example_inputs

# A state dict does not say into how many heads a width is cut: 64 wide, but for XL's 72.
_HEADS = {1152: 16}
# What the layout takes for granted.
_PLAIN = {
    "attention": Full(),
    "qk_norm": None,
    "rope": None,
    "ffn": Mlp(),
    "norm": "layer",
    "time_features": Sinusoid(),
}


class DiTLayout(Layout):
    """Keys of the released DiT files and of its training script."""

    name = "dit"
    licence = "CC-BY-NC-4.0"

    def matches(self, shapes: Shapes) -> bool:
        return is_dit(shapes) and not any(key.startswith("projectors.") for key in shapes)

    def describe(self, shapes, config):
        del config
        model = dit_of(shapes)
        process = Gaussian(variance="learned_range" if model.learn_sigma else "fixed_large")
        sampling = Sampling(DDPM(steps=250), ClassifierFree(scale=1.5, channels=3))
        return found_dit(model, sample_shape(shapes), process, sampling)

    def exports(self, found):
        model = found.module
        return is_plain_dit(model) and isinstance(found.experiment.process, Gaussian)

    def entries(self, found):
        return dit_entries(found)


def is_dit(shapes: Shapes) -> bool:
    """Whether these are tensors of the DiT backbone: its names, and no others' attention."""
    names = {
        "x_embedder.proj.weight",
        "t_embedder.mlp.2.weight",
        "blocks.0.attn.qkv.bias",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.adaLN_modulation.1.weight",
        "final_layer.adaLN_modulation.1.weight",
        "pos_embed",
    }
    foreign = (
        *("blocks.0.attn.q_norm", "blocks.0.norm1", "blocks.1.mlp.cluster_centers"),
        *("s_embedder", "cls_projectors"),
    )
    return names <= shapes.keys() and not any(key.startswith(foreign) for key in shapes)


def is_plain_dit(model: nn.Module) -> bool:
    """Whether a model is DiT with nothing exchanged, its time embedding included."""
    if type(model) is not DiT or not isinstance(model.attention, Full):
        return False
    # What computes the attention makes no difference to its weights.
    return model.clone(**_PLAIN) == model.clone(attention=Full())


def dit_of(shapes: Shapes) -> DiT:
    """Reads the backbone off the shapes of its tensors."""
    hidden, channels, patch, _ = shapes["x_embedder.proj.weight"]
    table = shapes.get("y_embedder.embedding_table.weight", (1,))
    return DiT(
        patch=patch,
        hidden=hidden,
        depth=count_layers(shapes, "blocks"),
        heads=heads_of(hidden),
        num_classes=table[0] - 1,
        learn_sigma=shapes["final_layer.linear.weight"][0] == 2 * channels * patch**2,
    )


def heads_of(width: int) -> int:
    """Number of heads that the family cuts a width into, which no tensor's shape tells."""
    return _HEADS.get(width, width // 64)


def sample_shape(shapes: Shapes) -> tuple[int, int, int]:
    """Shape [h, w, c] of the square samples that the position table is made for."""
    _, channels, patch, _ = shapes["x_embedder.proj.weight"]
    side = patch * math.isqrt(shapes["pos_embed"][1])
    return side, side, channels


def found_dit(
    model: DiT, shape: tuple[int, int, int], process: Process, sampling: Sampling
) -> Found:
    """A diffusion model over the latents of Stable Diffusion's VAE, whose data are elsewhere."""
    height, width, channels = shape
    experiment = Experiment(
        model=model,
        process=process,
        sampling=sampling,
        latents=Cached(VAE()),
        data=Absent((height, width, 2 * channels), model.num_classes),
        training=Training(ema=()),
        run=RunFolder(""),
    )
    return Found(model, example_inputs(shape), experiment)


def dit_entries(found: Found) -> list[Entry]:
    """Rules for the backbone that DiT and SiT share."""
    block, layer = "blocks.{i}", "blocks/layers"
    return [
        *frame_entries(found),
        *attention_entries(block, layer, found.module.heads),
        *mlp_entries(f"{block}.mlp", f"{layer}/ffn"),
    ]


def mlp_entries(
    source: str, path: str, names: tuple[str, str] = ("fc1", "fc2"), **options: Any
) -> list[Entry]:
    """Rules for a two-layer perceptron."""
    both = zip(names, ("fc1", "fc2"))
    return [rule for a, b in both for rule in linear(f"{source}.{a}", f"{path}/{b}", **options)]


def attention_entries(
    block: str,
    layer: str,
    heads: int,
    names: tuple[str, str] = ("attn.qkv", "attn.proj"),
    **options: Any,
) -> list[Entry]:
    """Rules for a block's attention and modulation."""
    qkv, out = (f"{block}.{name}" for name in names)
    return [
        *fused_qkv(qkv, f"{layer}/attention/qkv", heads, **options),
        *merge_heads(out, f"{layer}/attention/out", heads, **options),
        *linear(f"{block}.adaLN_modulation.1", f"{layer}/adaln/linear", **options),
    ]


def frame_entries(found: Found) -> list[Entry]:
    """Rules for what is around DiT's blocks."""
    model, x = found.module, found.inputs[1]
    entries = [
        *patch_embed("x_embedder.proj", "patch_embed", model.patch),
        *linear("t_embedder.mlp.0", "time_embed/fc1"),
        *linear("t_embedder.mlp.2", "time_embed/fc2"),
        *linear("final_layer.linear", "final/linear"),
        *linear("final_layer.adaLN_modulation.1", "final/adaln/linear"),
        Fixed(
            "pos_embed",
            sincos_2d(patch_grid(x.shape, model.patch), model.hidden)[None],
            "sines that the model computes",
        ),
    ]
    if model.num_classes:
        entries.append(tensor("y_embedder.embedding_table.weight", "label_embed/table/embedding"))
    return entries
