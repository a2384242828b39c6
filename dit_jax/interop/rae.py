"""Representation autoencoders as a whole: joined of their parts, and decoding a model's samples."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.errors import InputError
from dit_jax.interop.engine import TorchTensor, make_plan, to_torch
from dit_jax.interop.layout import Found
from dit_jax.interop.layouts.diffusers_rae import DiffusersRAELayout, encoder_layout
from dit_jax.interop.rules import Carried
from dit_jax.interop.store import Converted, Source, write_converted
from dit_jax.interop.stored import StoredTensor
from dit_jax.latents.rae import RAE, Normalization, RepresentationAutoencoder, ViTDecoder
from dit_jax.latents.rae.encoders import VisionEncoder

_KINDS = {"encoder": VisionEncoder, "decoder": ViTDecoder, "statistics": Normalization}


def join_rae(out: str, *, encoder: str, decoder: str, statistics: str | None = None) -> list[str]:
    """Makes one folder of an encoder's, a decoder's and the statistics of their latents.

    It holds what diffusers' AutoencoderRAE does, so that `convert_to_torch` can write that. Of the
    encoder's last norm scale and bias are left out. Variances become deviations as diffusers' own
    conversion makes them of the authors' files: d = sqrt(variance + 1e-5). As 1e-5 is added to
    these again, latents come out smaller than the authors' by a factor of 1 + 1e-5 / d.

    Args:
      out: folder to make.
      encoder: folder of a converted vision encoder.
      decoder: folder of its decoder, converted, or the run that trained it.
      statistics: folder of the latents' statistics, converted, or what `latent-stats` made; None
        for latents as the encoder gives them.

    Returns:
      What was done, a line each.

    Raises:
      InputError: a folder holds something else, they do not fit together, or `out` is there.
    """
    folders = {"encoder": encoder, "decoder": decoder, "statistics": statistics}
    parts = {name: _open(name, folder) for name, folder in folders.items() if folder is not None}
    found = _joined({name: part.found for name, part in parts.items()})
    entries = DiffusersRAELayout().entries(found)
    variances = statistics is not None and parts["statistics"].found.module.kept == "variance"

    def read(path: str, layer: int | None) -> np.ndarray:
        part, _, inside = path.partition("/")
        if variances and path == "statistics/deviation":
            return np.sqrt(parts[part].read("variance", layer) + np.float32(1e-5))
        return parts[part].read(inside, layer)

    dtypes = {f"{n}/{path}": dtype for n, p in parts.items() for path, dtype in p.dtypes.items()}
    if variances:
        dtypes["statistics/deviation"] = dtypes["statistics/variance"]
    tensors = [*to_torch(entries, found.abstract(), dtypes, read), *_carried(parts["encoder"])]
    stored = {t.key: StoredTensor(t.shape, t.dtype.name, t.make) for t in tensors}
    shapes = {key: tensor.shape for key, tensor in stored.items()}
    plan = make_plan(entries, shapes, found.abstract())
    write_converted(out, plan, stored, found, _source(parts))
    return [f"{', '.join(parts)} joined", *plan.report()]


def latents_of(folder: str) -> RAE:
    """Returns the latent space of an autoencoder that one folder holds.

    Raises:
      InputError: the folder holds something else.
    """
    module = Converted(folder, ema=None).found.module
    if not isinstance(module, RepresentationAutoencoder):
        raise InputError(
            f"'{folder}' holds a {type(module).__name__}: give the folder of a representation "
            f"autoencoder, which `python -m dit_jax convert rae` makes of its parts"
        )
    if module.statistics is None:
        return RAE(module.encoder, folder, module.decoder, folder)
    return RAE(module.encoder, folder, module.decoder, folder, folder, module.statistics)


def _open(name: str, folder: str) -> Converted:
    part = Converted(folder, "first")
    if not isinstance(part.found.module, _KINDS[name]):
        kind = type(part.found.module).__name__
        raise InputError(f"--{name} '{folder}' holds a {kind}, not a {_KINDS[name].__name__}")
    return part


def _joined(parts: dict[str, Found]) -> Found:
    """The autoencoder that parts make."""
    encoder, decoder = (parts[name].module for name in ("encoder", "decoder"))
    _, height, width, channels = shape = parts["decoder"].inputs[1].shape
    if encoder.hidden != channels:
        raise InputError(
            f"the decoder takes tokens of {channels} channels, and the encoder's have "
            f"{encoder.hidden}"
        )
    if "statistics" in parts and (other := parts["statistics"].inputs[1].shape) != shape:
        raise InputError(
            f"the statistics are of latents of shape {other[1:]}, and the decoder takes {shape[1:]}"
        )
    kept = Normalization(kept="deviation") if "statistics" in parts else None
    module = RepresentationAutoencoder(encoder.clone(affine=False), decoder, kept)
    images = jnp.zeros((1, height * encoder.patch, width * encoder.patch, 3))
    return Found(module, (jax.random.key(0), images))


def _carried(encoder: Converted) -> list[TorchTensor]:
    """What came with the encoder and is unused, by its keys in the whole."""
    layout, prefix = encoder_layout(encoder.found.module), encoder.found.notes.get("prefix", "")
    entries = [Carried(re.escape(prefix) + key, why) for key, why in layout.unused.items()]
    return [
        TorchTensor(layout.prefixes[0] + t.key.removeprefix(prefix), t.shape, t.dtype, t.make)
        for t in encoder.carried(entries)
    ]


def _source(parts: dict[str, Converted]) -> Source:
    """Where the parts come from, one after the other; those made here come from nowhere."""
    sources = [part.source for part in parts.values() if part.source]
    file, sha256 = (", ".join(getattr(s, name) for s in sources) for name in ("file", "sha256"))
    licences = ", ".join(s.licence or f"that of {s.file}" for s in sources)
    return Source(file, sha256, DiffusersRAELayout.name, None, licences or None)
