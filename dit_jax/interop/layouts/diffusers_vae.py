"""Stable Diffusion's autoencoder as diffusers keeps it (AutoencoderKL; arXiv 2112.10752)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.interop.layout import Found, Layout, agreed_length, count_layers
from dit_jax.interop.rules import Entry, conv, merge_heads, norm, separate_qkv
from dit_jax.latents.vae import AutoencoderKL

# Names of the attention's projections: queries, keys, values, output. The files of 2022, to which
# sd-vae-ft-mse and sd-vae-ft-ema belong, have the second ones; diffusers reads both.
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ATTENTION_2022 = ("query", "key", "value", "proj_attn")

# What config.json says of the latent space and not of the network, as for sd-vae-ft-mse.
_LATENT_SPACE = {"sample_size": 256, "scaling_factor": 0.18215}
_OPTIONAL = ("shift_factor", "latents_mean", "latents_std", "force_upcast")

# Other autoencoders around the same encoder and decoder: VQ, FLUX.2, asymmetric.
_FOREIGN = ("quantize.", "bn.", "decoder.condition_encoder.")


class DiffusersVAELayout(Layout):
    """Keys and configuration of diffusers' AutoencoderKL.

    The spelling of its attention and what its configuration says of the latent space, such as
    `scaling_factor`, are noted for the way back.

    A state dict does not say into how many groups its norms divide channels: the configuration
    does, and without one it is Stable Diffusion's 32.
    """

    name = "diffusers-vae"
    licence = "MIT for sd-vae-ft-mse and sd-vae-ft-ema; see the source of other weights"
    config = "config.json"
    weights = "diffusion_pytorch_model.safetensors"

    def matches(self, shapes):
        middle = "decoder.mid_block.attentions.0"
        names = {
            "encoder.conv_in.weight",
            "encoder.down_blocks.0.resnets.0.conv1.weight",
            "decoder.up_blocks.0.resnets.0.conv1.weight",
            f"{middle}.group_norm.weight",
        }
        attention = {f"{middle}.{_ATTENTION[0]}.weight", f"{middle}.{_ATTENTION_2022[0]}.weight"}
        return (
            names <= shapes.keys()
            and not attention.isdisjoint(shapes)
            and len(shapes["encoder.conv_in.weight"]) == 4
            and not any(key.startswith(_FOREIGN) for key in shapes)
        )

    def describe(self, shapes, config):
        _check_config(config)
        levels = range(count_layers(shapes, "encoder.down_blocks"))
        block = r"encoder\.down_blocks\.{}\.resnets\.\d+\.(conv[12]|norm2)\.\w+"
        module = AutoencoderKL(
            channels=tuple(agreed_length(shapes, {block.format(i): 0}) for i in levels),
            layers=count_layers(shapes, "encoder.down_blocks.0.resnets"),
            latent_channels=agreed_length(shapes, {r"(encoder\.conv_out|quant_conv)\.\w+": 0}) // 2,
            image_channels=agreed_length(
                shapes, {r"encoder\.conv_in\.weight": 1, r"decoder\.conv_out\.\w+": 0}
            ),
            groups=config.get("norm_num_groups", 32),
            use_quant_conv=any(key.startswith("quant_conv.") for key in shapes),
        )
        old = f"decoder.mid_block.attentions.0.{_ATTENTION_2022[0]}.weight" in shapes
        known = {*_LATENT_SPACE, *_OPTIONAL}
        latent_space = _LATENT_SPACE | {k: v for k, v in config.items() if k in known}
        images = jnp.zeros((1, module.factor, module.factor, module.image_channels))
        notes = {
            "attention": list(_ATTENTION_2022 if old else _ATTENTION),
            "latent_space": latent_space,
        }
        return Found(module, (jax.random.key(0), images), notes=notes)

    def exports(self, found):
        return isinstance(found.module, AutoencoderKL)

    def entries(self, found):
        module = found.module
        attention = found.notes.get("attention", _ATTENTION)
        up, rules = module.channels[::-1], []
        for side in ("encoder", "decoder"):
            rules += conv(f"{side}.conv_in", f"{side}/conv_in")
            rules += _mid(f"{side}.mid_block", f"{side}/mid", attention)
            rules += norm(f"{side}.conv_norm_out", f"{side}/norm_out")
            rules += conv(f"{side}.conv_out", f"{side}/conv_out")
        for i, changes in enumerate(_changes(module.channels)):
            source, path = f"encoder.down_blocks.{i}", f"encoder/down_{i}"
            rules += _level(source, path, module.layers, changes)
            if i < len(up) - 1:
                rules += conv(f"{source}.downsamplers.0.conv", f"{path}/downsample")
        for i, changes in enumerate(_changes(up)):
            source, path = f"decoder.up_blocks.{i}", f"decoder/up_{i}"
            rules += _level(source, path, module.layers + 1, changes)
            if i < len(up) - 1:
                rules += conv(f"{source}.upsamplers.0.conv", f"{path}/upsample")
        if module.use_quant_conv:
            rules += conv("quant_conv", "quant_conv")
            rules += conv("post_quant_conv", "post_quant_conv")
        return rules

    def write_config(self, found, read):
        del read
        module = found.module
        levels = len(module.channels)
        return {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": list(module.channels),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "in_channels": module.image_channels,
            "latent_channels": module.latent_channels,
            "layers_per_block": module.layers,
            "norm_num_groups": module.groups,
            "out_channels": module.image_channels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "use_post_quant_conv": module.use_quant_conv,
            "use_quant_conv": module.use_quant_conv,
            **found.notes.get("latent_space", _LATENT_SPACE),
        }


def _check_config(config: dict[str, Any]) -> None:
    """Refuses what tensors' names and shapes do not show."""
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise InputError(f"config.json is of a {kind}, not of an AutoencoderKL")
    activation = config.get("act_fn", "silu")
    if activation not in ("silu", "swish"):
        raise InputError(f"config.json names the activation '{activation}': only silu is known")


def _changes(channels: tuple[int, ...]) -> list[bool]:
    """Whether each level's channels differ from those of the level before."""
    return [before != after for before, after in zip(channels[:1] + channels, channels)]


def _level(source: str, path: str, layers: int, changes: bool) -> list[Entry]:
    rules = []
    for i in range(layers):
        rules += _residual(f"{source}.resnets.{i}", f"{path}/block_{i}", changes and i == 0)
    return rules


def _mid(source: str, path: str, attention: Sequence[str]) -> list[Entry]:
    *qkv, out = (f"{source}.attentions.0.{name}" for name in attention)
    return [
        *_residual(f"{source}.resnets.0", f"{path}/block_0", False),
        *norm(f"{source}.attentions.0.group_norm", f"{path}/attention/norm"),
        *separate_qkv(qkv, f"{path}/attention/qkv", heads=1),
        *merge_heads(out, f"{path}/attention/out", heads=1),
        *_residual(f"{source}.resnets.1", f"{path}/block_1", False),
    ]


def _residual(source: str, path: str, shortcut: bool) -> list[Entry]:
    rules = []
    for i in (1, 2):
        rules += norm(f"{source}.norm{i}", f"{path}/norm{i}")
        rules += conv(f"{source}.conv{i}", f"{path}/conv{i}")
    return rules + conv(f"{source}.conv_shortcut", f"{path}/shortcut") * shortcut
