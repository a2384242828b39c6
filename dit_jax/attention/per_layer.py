"""Different token mixing in different layers."""

import dataclasses

import flax.linen as nn

from dit_jax.attention.full import Full
from dit_jax.attention.mixer import TokenMixer
from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PerLayer(TokenMixer):
    """One mechanism in the first layers, another in those after them.

    Sparse mechanisms often leave the first layers dense (PISA's FLUX: four). Either may be a
    `PerLayer` again. Mechanisms that learn something have parameters of their own, and serve all
    layers or none.

    Attributes:
      first: mechanism of the first layers.
      layers: how many those are.
      rest: mechanism of the layers after them.
    """

    first: TokenMixer = dataclasses.field(default_factory=Full)
    layers: int = 4
    rest: TokenMixer = dataclasses.field(default_factory=Full)

    def __call__(self, q, k, v, grid):
        raise InputError("this model has one mechanism of attention for all layers, not PerLayer")


def layer_ranges(mixer: TokenMixer, depth: int) -> list[tuple[TokenMixer, int, int]]:
    """The mechanisms of a stack of `depth` layers, each with its first layer and the one after.

    Raises:
      InputError: `PerLayer` counts more layers than there are, or has a mechanism with parameters.
    """
    if not isinstance(mixer, PerLayer):
        return [(mixer, 0, depth)]
    if not 0 < mixer.layers < depth:
        raise InputError(
            f"PerLayer's first {mixer.layers} layers: there are {depth}, and some must be left"
        )
    rest = layer_ranges(mixer.rest, depth - mixer.layers)
    rest = [(kind, mixer.layers + start, mixer.layers + stop) for kind, start, stop in rest]
    ranges = layer_ranges(mixer.first, mixer.layers) + rest
    if any(isinstance(kind, nn.Module) for kind, *_ in ranges):
        raise InputError("PerLayer has mechanisms without parameters alone")
    return ranges
