"""What the vision encoders of transformers have in common: their parts, and a folder's config."""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.interop.layout import Found, Layout, Shapes, agreed_length, count_layers
from dit_jax.interop.rules import (
    Carried,
    Entry,
    linear,
    merge_heads,
    norm,
    patch_embed,
    separate_qkv,
    tensor,
)
from dit_jax.latents.rae.encoders import Perceptron, VisionEncoder

# What a config.json that does not say has in all these families.
_DEFAULT_HEADS = 12


@dataclasses.dataclass(frozen=True)
class Names:
    """What the parts of an encoder are called, in keys without a prefix.

    Attributes:
      layer: a block; `{i}` is its number.
      norms: the block's norms.
      qkv: its projections to queries, keys and values.
      out: its projection after attention.
      ffn: its perceptron's layers.
      final: the norm after the blocks.
      patch: embedding of patches.
      position: embeddings of positions.
      cls: the CLS token; None for an encoder without one.
    """

    layer: str
    norms: tuple[str, str]
    qkv: tuple[str, str, str]
    out: str
    ffn: tuple[str, str]
    final: str = "layernorm"
    patch: str = "embeddings.patch_embeddings.projection"
    position: str = "embeddings.position_embeddings"
    cls: str | None = "embeddings.cls_token"


class VisionLayout(Layout):
    """Keys and configuration of a vision encoder of transformers, alone or in a larger model.

    The prefix of its keys, which of several spellings they have and the configuration are noted for
    the way back. What belongs to a larger model is kept aside.

    Tensors do not say into how many heads a width is cut, nor the norms' eps: the configuration
    does. Without one, heads are 64 wide, but for the widths in `heads`, and eps is the encoder's.

    Attributes:
      encoder: class of the encoder.
      names: spellings, the one first in which an encoder of unknown origin is written.
      prefixes: what may stand before the encoder's keys, likewise.
      marks: further keys, after the prefix, that give the family away.
      foreign: beginnings of keys, after the prefix, that only other families have.
      unused: reasons why tensors of the encoder are kept aside, by regular expressions of their
        keys after the prefix.
      around: the same for tensors of the larger models, by regular expressions of whole keys.
      kinds: `model_type` in the configurations.
      approximate: whether GELU is approximated with tanh.
      heads: numbers of heads that are not 64 wide, by the width they cut.
    """

    licence = "Apache-2.0"
    config = "config.json"
    encoder: type[VisionEncoder]
    names: dict[str, Names]
    prefixes: tuple[str, ...]
    marks: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    unused: dict[str, str] = {}
    around: dict[str, str] = {}
    kinds: tuple[str, ...]
    approximate: bool = False
    heads: dict[int, int] = {}

    def matches(self, shapes):
        return self._where(shapes) is not None

    def describe(self, shapes, config):
        settings = self.settings(config)
        self._check(config, settings)
        prefix, spelling = self._where(shapes)
        names = self.names[spelling]
        hidden = agreed_length(shapes, {rf"{_in_layers(prefix, names)}{names.norms[0]}\.\w+": 0})
        patch = shapes[f"{prefix}{names.patch}.weight"][-1]
        patches = shapes[prefix + names.position][-2] - (names.cls is not None)
        module = self.encoder(
            patch=patch,
            hidden=hidden,
            depth=count_layers(shapes, (prefix + names.layer).removesuffix(".{i}")),
            heads=self._heads(hidden, settings),
            image_size=patch * math.isqrt(patches),
            eps=settings.get("layer_norm_eps", self.encoder.eps),
            **self.parts(shapes, prefix, spelling, settings),
        )
        whole = any(re.fullmatch(pattern, key) for pattern in self.around for key in shapes)
        made = {} if whole else self.make_config(module, shapes.keys())
        notes = {"prefix": prefix, "names": spelling, "config": config or made}
        images = jnp.zeros((1, module.image_size, module.image_size, 3))
        return Found(module, (jax.random.key(0), images), notes=notes)

    def exports(self, found):
        module = found.module
        return type(module) is self.encoder and module.affine and self.keeps(module.ffn)

    def entries(self, found):
        module, prefix, names = found.module, self.prefix(found), self.names[self.spelling(found)]
        layer, path = prefix + names.layer, "blocks/layers"
        qkv = [f"{layer}.{name}" for name in names.qkv]
        carried = {re.escape(prefix) + key: reason for key, reason in self.unused.items()}
        entries = [
            *patch_embed(prefix + names.patch, "patch_embed", module.patch),
            *norm(f"{layer}.{names.norms[0]}", f"{path}/norm1"),
            *norm(f"{layer}.{names.norms[1]}", f"{path}/norm2"),
            *separate_qkv(qkv, f"{path}/attention/qkv", module.heads),
            *merge_heads(f"{layer}.{names.out}", f"{path}/attention/out", module.heads),
            *self.ffn_rules(found, layer, f"{path}/ffn"),
            *(norm(prefix + names.final, "norm") if module.affine else []),
            *(Carried(key, reason) for key, reason in (carried | self.around).items()),
        ]
        if names.cls is None:
            return [*entries, tensor(prefix + names.position, "position")]
        position = tensor(prefix + names.position, "position", "1 n d -> n d")
        return [*entries, position, tensor(prefix + names.cls, "cls", "1 1 d -> 1 d")]

    def write_config(self, found, read):
        del read
        config = found.notes["config"] if found.notes else self.make_config(found.module, ())
        if not config:
            raise InputError(
                "this came from the file of a larger model without its config.json, which nothing "
                "here tells: write a .safetensors file instead of a folder"
            )
        return config

    def settings(self, config: dict[str, Any]) -> dict[str, Any]:
        """The part of a configuration that is about the encoder."""
        return config

    def parts(
        self, shapes: Shapes, prefix: str, spelling: str, settings: dict[str, Any]
    ) -> dict[str, Any]:
        """Further fields of the encoder."""
        del settings
        names = self.names[spelling]
        first, second = (_in_layers(prefix, names) + re.escape(name) for name in names.ffn)
        axes = {rf"{first}\.\w+": 0, rf"{second}\.weight": 1}
        return {"ffn": Perceptron(agreed_length(shapes, axes), self.approximate)}

    def keeps(self, ffn: nn.Module) -> bool:
        """Whether a channel mixer can be written."""
        return isinstance(ffn, Perceptron) and ffn.approximate == self.approximate

    def ffn_rules(self, found: Found, layer: str, path: str) -> list[Entry]:
        """Rules for the channel mixer at `path`, part of the block with keys `layer`."""
        names = zip(self.names[self.spelling(found)].ffn, ("fc1", "fc2"))
        return [rule for key, fc in names for rule in linear(f"{layer}.{key}", f"{path}/{fc}")]

    def prefix(self, found: Found) -> str:
        """What stood before the keys of a model's tensors, or what stands there first of all."""
        return found.notes.get("prefix", self.prefixes[0])

    def spelling(self, found: Found) -> str:
        """Which of `names` a model's tensors had, or the first."""
        return found.notes.get("names", next(iter(self.names)))

    def make_config(self, module: VisionEncoder, keys: Iterable[str]) -> dict[str, Any]:
        """Configuration of an encoder that came without one; `keys` are the file's."""
        del keys
        return {
            "model_type": self.kinds[0],
            "hidden_size": module.hidden,
            "num_hidden_layers": module.depth,
            "num_attention_heads": module.heads,
            "image_size": module.image_size,
            "patch_size": module.patch,
            "num_channels": 3,
            "layer_norm_eps": module.eps,
            "hidden_act": self._activation,
        }

    @property
    def _activation(self) -> str:
        return "gelu_pytorch_tanh" if self.approximate else "gelu"

    def _where(self, shapes: Shapes) -> tuple[str, str] | None:
        """Prefix and spelling of a file's keys, None for other families."""
        for prefix in self.prefixes:
            for spelling, names in self.names.items():
                query = f"{names.layer}.{names.qkv[0]}.weight".replace("{i}", "0")
                patch = f"{prefix}{names.patch}.weight"
                keys = {prefix + key for key in (names.position, query, *self.marks)}
                foreign = tuple(prefix + key for key in self.foreign)
                if (
                    keys <= shapes.keys()
                    and len(shapes.get(patch, ())) == 4
                    and len(shapes[prefix + names.position]) > 1
                    and not any(key.startswith(foreign) for key in shapes)
                ):
                    return prefix, spelling
        return None

    def _heads(self, hidden: int, settings: dict[str, Any]) -> int:
        if settings:
            return settings.get("num_attention_heads", _DEFAULT_HEADS)
        return self.heads.get(hidden, max(hidden // 64, 1))

    def _check(self, config: dict[str, Any], settings: dict[str, Any]) -> None:
        """Refuses what tensors' names and shapes do not show."""
        kind = config.get("model_type", self.kinds[0])
        if kind not in self.kinds:
            raise InputError(f"config.json is of a '{kind}' model, not {' or '.join(self.kinds)}")
        activation = settings.get("hidden_act", self._activation)
        if activation != self._activation:
            raise InputError(
                f"config.json names the activation '{activation}': only {self._activation} is known"
            )


def _in_layers(prefix: str, names: Names) -> str:
    """Beginning of a regular expression of keys in any block."""
    return re.escape(f"{prefix}{names.layer}.").replace(r"\{i\}", r"\d+")
