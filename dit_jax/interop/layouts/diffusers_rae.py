"""Representation autoencoders as diffusers keeps them (AutoencoderRAE; arXiv 2510.11690)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax import serialization
from dit_jax.errors import InputError
from dit_jax.interop.layout import Found, Layout, Shapes
from dit_jax.interop.layouts.dinov2 import Dinov2Layout
from dit_jax.interop.layouts.rae_decoder import decoder_entries, decoder_of, is_published_kind
from dit_jax.interop.layouts.siglip import SigLIPLayout
from dit_jax.interop.layouts.vision import VisionLayout
from dit_jax.interop.layouts.vit_mae import ViTMAELayout
from dit_jax.interop.rules import Carried, Entry, Fixed, Rule, tensor
from dit_jax.latents.rae import Normalization, RepresentationAutoencoder
from dit_jax.latents.rae.encoders import MAE, Dinov2, Perceptron, SigLIP, VisionEncoder

_ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
# What config.json says of the latents and not of the network, as when nothing is said.
_LATENT_SPACE = {"noise_tau": 0.0, "reshape_to_2d": True, "use_encoder_loss": False}
_STATISTICS = ("latents_mean", "latents_std")
# Tokens on a side for which diffusers computes the positions that decoders are trained with.
_SIDE = 16


class _Dinov2(Dinov2Layout):
    """diffusers saves what is in memory, so newer versions of transformers spell otherwise."""

    names = dict(reversed(Dinov2Layout.names.items()))
    prefixes = ("encoder.",)


class _SigLIP(SigLIPLayout):
    """diffusers 0.42 needs the image tower by its name of transformers 4."""

    prefixes = ("encoder.vision_model.", "encoder.")
    marks = ("embeddings.patch_embedding.bias",)


class _MAE(ViTMAELayout):
    """The keys of its own decoder are those of RAE's here."""

    names = dict(reversed(ViTMAELayout.names.items()))
    prefixes = ("encoder.",)
    marks = ("embeddings.cls_token",)
    around = {}


_ENCODERS: dict[str, VisionLayout] = {"dinov2": _Dinov2(), "siglip2": _SigLIP(), "mae": _MAE()}


class DiffusersRAELayout(Layout):
    """Keys and configuration of diffusers' AutoencoderRAE: encoder, decoder and statistics.

    The last norm of the encoder has no scale and bias. Its keys are spelled as by the version of
    transformers that saved them, and go back as they came; those of an encoder that was not
    diffusers' before are spelled as by transformers 5.

    diffusers keeps deviations, and adds 1e-5 to them; without statistics it still divides by 1 +
    1e-5, and nothing is divided here. For grids other than 16 x 16 it computes positions that are
    not whole numbers, with which no decoder was trained; here they are always the authors', and a
    decoder of another grid is no folder for diffusers.
    """

    name = "diffusers-rae"
    licence = "MIT for the decoder and the statistics; the encoder's is its authors'"
    config = "config.json"
    weights = "diffusion_pytorch_model.safetensors"

    def matches(self, shapes):
        names = {"encoder_mean", "encoder_std", "_latents_mean", "_latents_std"}
        names |= {"decoder.decoder_embed.weight", "decoder.trainable_cls_token"}
        return names <= shapes.keys() and any(x.matches(shapes) for x in _ENCODERS.values())

    def describe(self, shapes, config):
        _check_config(config)
        family = next(x for x in _ENCODERS.values() if x.matches(shapes))
        found = family.describe(shapes, {})
        # diffusers cuts all encoders into heads of 64.
        heads = max(found.module.hidden // 64, 1)
        encoder = found.module.clone(heads=heads, affine=False)
        decoder_heads = config.get("decoder_num_attention_heads", 16 if config else None)
        module = RepresentationAutoencoder(
            encoder,
            decoder_of(shapes, "decoder.", decoder_heads),
            None if shapes["_latents_std"] == (1,) else Normalization(kept="deviation"),
        )
        rows, columns = (side * encoder.patch for side in _grid(shapes, config, encoder.patch))
        notes = {
            "encoder": {name: found.notes[name] for name in ("prefix", "names")},
            "config": {k: v for k, v in config.items() if v is None or k not in _STATISTICS},
        }
        return Found(module, (jax.random.key(0), jnp.zeros((1, rows, columns, 3))), notes=notes)

    def exports(self, found):
        module = found.module
        return (
            isinstance(module, RepresentationAutoencoder)
            and is_published_kind(module.decoder)
            and (module.statistics is None or module.statistics.kept == "deviation")
        )

    def entries(self, found):
        module = found.module
        encoder, order = module.encoder, "c h w -> h w c"
        names = tuple(f"_{name}" for name in _STATISTICS)
        if module.statistics is None:
            reason = "no statistics of latents"
            values = zip(names, (np.zeros(1, np.float32), np.ones(1, np.float32)))
            statistics = [Fixed(name, value, reason) for name, value in values]
        else:
            paths = zip(names, ("statistics/mean", "statistics/deviation"))
            statistics = [tensor(name, path, order) for name, path in paths]
        return [
            *_encoder_entries(found),
            *decoder_entries(module.decoder, "decoder.", "decoder/", _ATTENTION),
            *statistics,
            *(
                Fixed(f"encoder_{name}", _by_channel(values), "pixels as this encoder wants them")
                for name, values in (("mean", encoder.mean), ("std", encoder.std))
            ),
            Carried(
                r"decoder\.decoder_pos_embed", "positions, which diffusers does not read either"
            ),
        ]

    def write_config(self, found, read):
        config = found.notes.get("config") or _make_config(found)
        if found.module.statistics is None:
            return config
        return config | {name: read(f"_{name}").tolist() for name in _STATISTICS}


def encoder_layout(encoder: VisionEncoder) -> VisionLayout:
    """Returns the layout of an encoder's keys within those of the whole.

    Raises:
      InputError: diffusers has no such encoder.
    """
    for family in _ENCODERS.values():
        if type(encoder) is family.encoder:
            return family
    raise InputError(f"no representation autoencoder is known around a {type(encoder).__name__}")


def _encoder_entries(found: Found) -> list[Entry]:
    """Rules for the encoder's part of the whole."""
    encoder = Found(found.module.encoder, (), notes=found.notes.get("encoder", {}))
    return [
        dataclasses.replace(entry, path=f"encoder/{entry.path}")
        if isinstance(entry, Rule)
        else entry
        for entry in encoder_layout(encoder.module).entries(encoder)
    ]


def _by_channel(values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def _check_config(config: dict[str, Any]) -> None:
    """Refuses what tensors' names and shapes do not show."""
    kind = config.get("_class_name", "AutoencoderRAE")
    if kind != "AutoencoderRAE":
        raise InputError(f"config.json is of a {kind}, not of an AutoencoderRAE")
    if (scale := config.get("scaling_factor", 1.0)) != 1.0:
        raise InputError(
            f"config.json has a scaling_factor of {scale}: only statistics scale latents here"
        )


def _grid(shapes: Shapes, config: dict[str, Any], patch: int) -> tuple[int, int]:
    """Rows and columns of tokens: the configuration's, the statistics', or the published ones."""
    if config:
        return (config.get("encoder_input_size", 224) // patch,) * 2
    mean = shapes["_latents_mean"]
    return mean[1:] if len(mean) == 3 else (_SIDE, _SIDE)


def _make_config(found: Found) -> dict[str, Any]:
    """Configuration of an autoencoder that came without one.

    Raises:
      InputError: diffusers would build another one of it.
    """
    encoder, decoder = found.module.encoder, found.module.decoder
    size = found.inputs[1].shape[1]
    if found.inputs[1].shape[1:3] != (_SIDE * encoder.patch,) * 2:
        raise InputError(
            f"diffusers places tokens as decoders were trained for grids of {_SIDE}x{_SIDE} alone, "
            f"and would draw other images of this one: write a .safetensors file"
        )
    if others := serialization.differences(_built(encoder), encoder):
        raise InputError(
            f"diffusers would build another encoder ({'; '.join(others)}): write a .safetensors "
            f"file"
        )
    kind = next(name for name, family in _ENCODERS.items() if type(encoder) is family.encoder)
    return {
        "_class_name": "AutoencoderRAE",
        "encoder_type": kind,
        "encoder_hidden_size": encoder.hidden,
        "encoder_patch_size": encoder.patch,
        "encoder_num_hidden_layers": encoder.depth,
        "encoder_input_size": size,
        "encoder_norm_mean": list(encoder.mean),
        "encoder_norm_std": list(encoder.std),
        "decoder_hidden_size": decoder.hidden,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": decoder.ffn.width,
        "patch_size": decoder.patch,
        "image_size": size // encoder.patch * decoder.patch,
        "num_channels": decoder.channels,
        "scaling_factor": 1.0,
        **_LATENT_SPACE,
    }


def _built(encoder: VisionEncoder) -> VisionEncoder:
    """The encoder that diffusers builds of the sizes that it is told."""
    sizes = {name: getattr(encoder, name) for name in ("patch", "hidden", "depth", "dtype")}
    sizes |= {"heads": encoder.hidden // 64, "affine": False}
    sizes["image_size"] = type(encoder).image_size // encoder.patch * encoder.patch
    if isinstance(encoder, Dinov2):
        return Dinov2(**sizes, registers=4, ffn=Perceptron(4 * encoder.hidden))
    return (SigLIP if isinstance(encoder, SigLIP) else MAE)(**sizes)
