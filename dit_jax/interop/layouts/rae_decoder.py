"""Decoders of representation autoencoders (bytetriper/RAE; Zheng et al., arXiv 2510.11690)."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.interop.layout import Found, Layout, Shapes, agreed_length, count_layers
from dit_jax.interop.layouts.lightning_dit import COMPUTED
from dit_jax.interop.rules import Entry, Fixed, linear, merge_heads, norm, separate_qkv, tensor
from dit_jax.latents.rae import ViTDecoder
from dit_jax.latents.rae.encoders import Perceptron
from dit_jax.layers.position import sincos_2d

# Names of the attention's projections: queries, keys, values, output.
_ATTENTION = (
    *(f"attention.attention.{name}" for name in ("query", "key", "value")),
    "attention.output.dense",
)
# Numbers of heads that are not 64 wide, by the width they cut.
_HEADS = {1152: 16}


class RAEDecoderLayout(Layout):
    """The authors' files of a decoder alone, with its table of positions.

    Tensors do not say into how many heads a width is cut: 1152 into 16, as in the decoder that was
    published, and all others into heads of 64, as in the smaller ones, 768 into 12 and 1024 into
    16.

    Positions are sines, and a decoder whose table was trained is refused. The authors' decoder has
    a grid of its own, to which other numbers of tokens are resized after `decoder_embed`; here
    there is a position for every token and an image of the size they make.
    """

    name = "rae-decoder"
    licence = "MIT"

    def matches(self, shapes):
        names = {"decoder_embed.weight", "decoder_pos_embed", "trainable_cls_token"}
        return names <= shapes.keys()

    def describe(self, shapes, config):
        del config
        module = decoder_of(shapes)
        side = math.isqrt(shapes["decoder_pos_embed"][1] - 1)
        latents = jnp.zeros((1, side, side, shapes["decoder_embed.weight"][1]))
        return Found(module, (jax.random.key(0), latents))

    def exports(self, found):
        return is_published_kind(found.module)

    def entries(self, found):
        grid, hidden = found.inputs[1].shape[1:3], found.module.hidden
        table = np.concatenate([np.zeros((1, hidden), np.float32), sincos_2d(grid, hidden)])
        positions = Fixed("decoder_pos_embed", table[None], COMPUTED)
        return [*decoder_entries(found.module), positions]


def is_published_kind(module: Any) -> bool:
    """Whether a module is a decoder such as the authors' code builds."""
    if not isinstance(module, ViTDecoder) or not isinstance(module.ffn, Perceptron):
        return False
    return not module.ffn.approximate and (module.channels, module.eps) == (3, 1e-12)


def decoder_of(shapes: Shapes, prefix: str = "", heads: int | None = None) -> ViTDecoder:
    """Reads a decoder off its tensors.

    Args:
      shapes: the file's tensors.
      prefix: what stands before the decoder's keys.
      heads: number of heads, if a configuration says so.
    """
    layer = re.escape(f"{prefix}decoder_layers.") + r"\d+\."
    hidden = agreed_length(shapes, {rf"{layer}layernorm_(before|after)\.\w+": 0})
    width = {rf"{layer}intermediate\.dense\.\w+": 0, rf"{layer}output\.dense\.weight": 1}
    return ViTDecoder(
        patch=math.isqrt(shapes[f"{prefix}decoder_pred.weight"][0] // 3),
        hidden=hidden,
        depth=count_layers(shapes, f"{prefix}decoder_layers"),
        heads=heads or _HEADS.get(hidden, max(hidden // 64, 1)),
        ffn=Perceptron(agreed_length(shapes, width), initial="torch"),
    )


def decoder_entries(
    module: ViTDecoder,
    prefix: str = "",
    path: str = "",
    attention: tuple[str, str, str, str] = _ATTENTION,
) -> list[Entry]:
    """Rules for a decoder's parameters.

    Args:
      module: the decoder.
      prefix: what stands before its keys.
      path: what stands before its paths.
      attention: names of the attention's projections.
    """
    layer, layers = f"{prefix}decoder_layers.{{i}}", f"{path}blocks/layers"
    *qkv, out = (f"{layer}.{name}" for name in attention)
    return [
        *linear(f"{prefix}decoder_embed", f"{path}token_embed"),
        tensor(f"{prefix}trainable_cls_token", f"{path}cls", "1 1 d -> 1 d"),
        *norm(f"{layer}.layernorm_before", f"{layers}/norm1"),
        *separate_qkv(qkv, f"{layers}/attention/qkv", module.heads),
        *merge_heads(out, f"{layers}/attention/out", module.heads),
        *norm(f"{layer}.layernorm_after", f"{layers}/norm2"),
        *linear(f"{layer}.intermediate.dense", f"{layers}/ffn/fc1"),
        *linear(f"{layer}.output.dense", f"{layers}/ffn/fc2"),
        *norm(f"{prefix}decoder_norm", f"{path}norm"),
        *linear(f"{prefix}decoder_pred", f"{path}pixels"),
    ]
