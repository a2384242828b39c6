"""Rules between a PyTorch state dict and a tree of parameters, each read in both directions."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import einops
import jax
import numpy as np

LAYER = "{i}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter and the tensors it is made of.

    Attributes:
      source: keys in the state dict; `{i}` stands for the number of a layer, which is axis 0 of the
        parameter. Several keys are stacked in this order, as a new first axis, before `pattern`.
      path: where the parameter is, e.g. `blocks/layers/attention/qkv/kernel`.
      pattern: how axes move, as einops writes it, from PyTorch to JAX; empty for not at all.
      sizes: lengths of axes that the pattern splits or joins, in one direction or the other.
      first: number in the state dict of the parameter's layer 0.
      step: what the number grows by from one of the parameter's layers to the next.
      tied: number of equal copies that the state dict holds, one a layer, of a single parameter; 0
        for a parameter of its own.
    """

    source: tuple[str, ...]
    path: str
    pattern: str = ""
    sizes: tuple[tuple[str, int], ...] = ()
    first: int = 0
    step: int = 1
    tied: int = 0

    @property
    def stacked(self) -> bool:
        """Whether the parameter has the layer as axis 0."""
        return LAYER in self.source[0] and not self.tied

    def keys(self, layer: int | None) -> tuple[str, ...]:
        """Keys of one layer's tensors, or with None of all that make the whole parameter."""
        layers = [layer or 0] if not self.tied else range(self.tied)
        numbers = [str(self.first + self.step * i) for i in layers]
        return tuple(key.replace(LAYER, number) for number in numbers for key in self.source)

    def to_jax(self, tensors: Sequence[Any]) -> Any:
        """Makes one layer's parameter of its tensors."""
        value = tensors[0] if len(tensors) == 1 else list(tensors)
        return einops.rearrange(value, self.pattern, **self._sizes) if self.pattern else value

    def to_torch(self, value: Any) -> list[Any]:
        """Inverse of `to_jax`."""
        if self.pattern:
            left, right = self.pattern.split("->")
            value = einops.rearrange(value, f"{right} -> {left}", **self._sizes)
        return [value] if len(self.source) == 1 else list(value)

    def source_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Shapes of the tensors that make one layer's parameter of that shape."""
        abstract = jax.ShapeDtypeStruct(shape, np.float32)
        return [leaf.shape for leaf in jax.eval_shape(self.to_torch, abstract)]

    @property
    def action(self) -> str:
        """What is done, in a word for the report."""
        words = [
            ("merged", len(self.source) > 1),
            ("rearranged", bool(self.pattern)),
            ("stacked", self.stacked),
            ("tied", self.tied > 0),
        ]
        return ", ".join(word for word, applies in words if applies) or "copied"

    @property
    def _sizes(self) -> dict[str, int]:
        names = set(re.findall(r"\w+", self.pattern))
        return {name: size for name, size in self.sizes if name in names}


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A tensor that is no parameter here because the model computes it.

    Attributes:
      key: its key.
      value: what it must be, up to rounding; the other way, what is written.
      reason: why it is not a parameter, for the report.
    """

    key: str
    value: np.ndarray
    reason: str


@dataclasses.dataclass(frozen=True)
class Carried:
    """Tensors that the model does not use, kept beside its parameters and given back.

    Attributes:
      pattern: regular expression that their keys match in full.
      reason: why the model does not use them, for the report.
    """

    pattern: str
    reason: str


Entry = Rule | Fixed | Carried


def tensor(source: str, path: str, pattern: str = "", **options: Any) -> Rule:
    """A rule for one tensor a layer."""
    return Rule((source,), path, pattern, **options)


def linear(source: str, path: str, *, bias: bool = True, **options: Any) -> list[Rule]:
    """Rules for a linear layer: PyTorch keeps [out, in], Flax [in, out]."""
    rules = [tensor(f"{source}.weight", f"{path}/kernel", "o i -> i o", **options)]
    return rules + [tensor(f"{source}.bias", f"{path}/bias", **options)] * bias


def conv(source: str, path: str, **options: Any) -> list[Rule]:
    """Rules for a convolution: PyTorch keeps [out, in, h, w], Flax [h, w, in, out]."""
    kernel = tensor(f"{source}.weight", f"{path}/kernel", "o i h w -> h w i o", **options)
    return [kernel, tensor(f"{source}.bias", f"{path}/bias", **options)]


def norm(source: str, path: str, **options: Any) -> list[Rule]:
    """Rules for a norm with a learned scale and bias."""
    names = (("weight", "scale"), ("bias", "bias"))
    return [tensor(f"{source}.{one}", f"{path}/{other}", **options) for one, other in names]


def normed_conv(conv: str, batch_norm: str, path: str) -> list[Rule]:
    """Rules for a convolution without bias and the batch norm after it, in one module here."""
    return [
        tensor(f"{conv}.weight", f"{path}/kernel", "o i h w -> h w i o"),
        *norm(batch_norm, path),
        tensor(f"{batch_norm}.running_mean", f"{path}/mean"),
        tensor(f"{batch_norm}.running_var", f"{path}/variance"),
    ]


def patch_embed(source: str, path: str, patch: int) -> list[Rule]:
    """Rules for a convolution of stride `patch`, here a linear layer over flattened patches."""
    kernel = tensor(
        f"{source}.weight", f"{path}/kernel", "d c p q -> (p q c) d", sizes=_square(patch)
    )
    return [kernel, tensor(f"{source}.bias", f"{path}/bias")]


def fused_qkv(source: str, path: str, heads: int, *, bias: bool = True, **options: Any) -> list:
    """Rules for one linear layer that makes queries, keys and values, in this order."""
    options["sizes"] = (("three", 3), ("h", heads))
    kernel = tensor(f"{source}.weight", f"{path}/kernel", "(three h d) i -> i three h d", **options)
    if not bias:
        return [kernel]
    return [kernel, tensor(f"{source}.bias", f"{path}/bias", "(three h d) -> three h d", **options)]


def separate_qkv(sources: Sequence[str], path: str, heads: int, **options: Any) -> list[Rule]:
    """Rules for three linear layers that make queries, keys and values."""
    weights, biases = (tuple(f"{s}.{leaf}" for s in sources) for leaf in ("weight", "bias"))
    sizes = (("h", heads),)
    return [
        Rule(weights, f"{path}/kernel", "three (h d) i -> i three h d", sizes, **options),
        Rule(biases, f"{path}/bias", "three (h d) -> three h d", sizes, **options),
    ]


def expert_linear(sources: Sequence[str], path: str, *, bias: bool, **options: Any) -> list[Rule]:
    """Rules for a linear layer of every expert, stacked; `sources` go from expert to expert."""
    weights, biases = (tuple(f"{s}.{leaf}" for s in sources) for leaf in ("weight", "bias"))
    kernel = Rule(weights, f"{path}/kernel", "e o i -> e i o", **options)
    return [kernel] + [Rule(biases, f"{path}/bias", "e o -> e o", **options)] * bias


def expert_gates(sources: Sequence[str], path: str) -> Rule:
    """Rule for a gate and a value, without biases, of every expert, one after the other."""
    weights = tuple(f"{source}.weight" for source in sources)
    return Rule(weights, f"{path}/kernel", "(e two) o i -> e i two o", (("two", 2),))


def merge_heads(source: str, path: str, heads: int, **options: Any) -> list[Rule]:
    """Rules for the linear layer after attention, whose input has a head axis here."""
    sizes = (("h", heads),)
    return [
        tensor(f"{source}.weight", f"{path}/kernel", "o (h d) -> h d o", sizes=sizes, **options),
        tensor(f"{source}.bias", f"{path}/bias", **options),
    ]


def _square(patch: int) -> tuple[tuple[str, int], ...]:
    return (("p", patch), ("q", patch))
