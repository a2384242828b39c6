"""The papers' models by the papers' names."""

import dataclasses
import difflib
from typing import Any

import flax.linen as nn

from dit_jax.diffusion import (
    Flow,
    Gaussian,
    LogitNormal,
    Process,
    TruncatedLogitNormal,
    dimension_shift,
)
from dit_jax.errors import InputError
from dit_jax.layers.mlp import SwiGLU
from dit_jax.layers.rope import AxialRope
from dit_jax.models import DDT, DiT, DiTDH, dit_moe, promoe


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published model.

    Attributes:
      model: the backbone, for 1000 ImageNet classes.
      process: what it was trained with, its clock included.
      layout: name of the layout of its authors' files (interop).
      shape: a sample of the space it diffuses, at 256 px.
    """

    model: nn.Module
    process: Process
    layout: str
    shape: tuple[int, int, int] = (32, 32, 4)


# Table 1 of DiT (arXiv 2212.09748), which SiT (arXiv 2401.08740) shares: depth, hidden, heads.
_SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
# SiT is DiT's network, dead variance channels included, on a flow whose time runs from noise.
_PROCESSES = {"DiT": Gaussian(), "SiT": Flow(data_time=1)}
_LOGNORMAL_FLOW = Flow(time=LogitNormal(), data_time=1)
_PROMOE_FLOW = Flow(time=LogitNormal(), time_scale=1000.0)
# DiT-MoE (arXiv 2407.11633) adds a size.
_MOE_SIZES = _SIZES | {"G": (40, 1408, 16)}
# DDT (arXiv 2504.05741): blocks of the encoder and of the decoder.
_DDT = {"B": (8, 4), "L": (20, 4), "XL": (22, 6)}


def _dit(size: str, patch: int) -> DiT:
    depth, hidden, heads = _SIZES[size]
    return DiT(patch=patch, hidden=hidden, depth=depth, heads=heads)


def _lightning_dit(size: str, patch: int) -> DiT:
    """LightningDiT (arXiv 2501.01423) as released: RMSNorm, SwiGLU, RoPE; no learned variance."""
    parts: dict[str, Any] = {"norm": "rms", "ffn": SwiGLU(), "rope": AxialRope()}
    return _dit(size, patch).clone(learn_sigma=False, **parts)


def _ddt(size: str) -> DDT:
    _, hidden, heads = _SIZES[size]
    encoder, decoder = _DDT[size]
    return DDT(hidden=hidden, heads=heads, encoder_depth=encoder, decoder_depth=decoder)


PRESETS: dict[str, Preset] = {
    f"{family}-{size}/{patch}": Preset(_dit(size, patch), process, family.lower())
    for family, process in _PROCESSES.items()
    for size in _SIZES
    for patch in (2, 4, 8)
}
# In the latents of VA-VAE, which are 16 x 16 x 32 at 256 px.
PRESETS |= {
    f"LightningDiT-{size}/{patch}": Preset(
        _lightning_dit(size, patch), _LOGNORMAL_FLOW, "lightning-dit", (16, 16, 32)
    )
    for size, patch in (("B", 1), ("B", 2), ("L", 2), ("XL", 1), ("XL", 2))
}
PRESETS |= {f"DDT-{size}/2": Preset(_ddt(size), _LOGNORMAL_FLOW, "ddt") for size in _DDT}
# RAE (arXiv 2510.11690) diffuses the tokens of a ViT-B: 16 x 16 x 768 at 256 px.
_RAE_SHAPE = (16, 16, 768)
_RAE_FLOW = Flow(time=TruncatedLogitNormal(), shift=dimension_shift(_RAE_SHAPE))
PRESETS |= {
    f"DiT-DH-{size}": Preset(
        DiTDH(depth=depth, hidden=hidden, heads=heads), _RAE_FLOW, "dit-dh", _RAE_SHAPE
    )
    for size, (depth, hidden, heads) in _SIZES.items()
}
# S and B were released with DiT's process, XL and G with a flow in the library's own clock. L was
# not released, and is taken for one of the former.
PRESETS |= {
    f"DiT-MoE-{size}/2-{experts}E2A": Preset(
        dit_moe(*_MOE_SIZES[size], experts, qk_norm=size in ("XL", "G")),
        Flow(time=LogitNormal()) if size in ("XL", "G") else Gaussian(),
        "dit-moe",
    )
    for size, experts in (
        *(("S", 8), ("S", 16), ("B", 8), ("B", 16)),
        *(("L", 8), ("XL", 8), ("G", 16)),
    )
}
PRESETS |= {
    f"ProMoE-{size}": Preset(promoe(*_SIZES[size]), _PROMOE_FLOW, "promoe") for size in _SIZES
}


def find_preset(name: str) -> Preset:
    """Returns the preset of that name.

    Raises:
      InputError: there is none; names the nearest.
    """
    if name not in PRESETS:
        by_lower = {known.lower(): known for known in PRESETS}
        near = by_lower[difflib.get_close_matches(name.lower(), by_lower, 1, cutoff=0)[0]]
        raise InputError(
            f"no preset '{name}': perhaps '{near}'; `python -m dit_jax models` lists all"
        )
    return PRESETS[name]


def create_model(name: str, **changes: Any) -> nn.Module:
    """Makes a preset's model with changed fields, such as `num_classes=10`.

    Raises:
      InputError: no such preset or field.
    """
    model = find_preset(name).model
    known = [f.name for f in dataclasses.fields(model) if f.name not in ("parent", "name")]
    for field in changes:
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f": perhaps '{near[0]}'" if near else f": it has {', '.join(known)}"
            raise InputError(f"{type(model).__name__} has no field '{field}'{hint}")
    return model.clone(**changes)
