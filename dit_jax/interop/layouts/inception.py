"""FID's Inception-v3 as pytorch-fid and torch-fidelity keep it (arXiv 1512.00567)."""

import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.interop.engine import by_path
from dit_jax.interop.layout import Found, Layout
from dit_jax.interop.rules import Carried, normed_conv, tensor
from dit_jax.metrics.inception import CLASSES, InceptionV3

_MARKS = ("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight")


class InceptionLayout(Layout):
    """The file pt_inception-2015-12-05-6726825d.pth: TensorFlow's weights under torchvision's keys.

    torchvision's own Inception has the same keys and is another network, which the number of
    classes tells.
    """

    name = "inception"
    licence = "Apache-2.0"

    def matches(self, shapes):
        return shapes.keys() >= set(_MARKS)

    def describe(self, shapes, config):
        del config
        if (classes := shapes["fc.weight"][0]) != CLASSES:
            raise InputError(
                f"this Inception-v3 has {classes} classes and not {CLASSES}: torchvision's own is "
                f"another network than FID's, which is in pt_inception-2015-12-05-6726825d.pth"
            )
        return Found(InceptionV3(), (jax.random.key(0), jnp.zeros((1, 299, 299, 3))))

    def exports(self, found):
        return isinstance(found.module, InceptionV3)

    def entries(self, found):
        kernels = (path for path in by_path(found.abstract()) if path.endswith("/kernel"))
        paths = [path.removesuffix("/kernel") for path in kernels if path != "fc/kernel"]
        keys = {path: path.replace("/", ".") for path in paths}
        rules = [normed_conv(f"{key}.conv", f"{key}.bn", path) for path, key in keys.items()]
        return [
            *(rule for layer in rules for rule in layer),
            tensor("fc.weight", "fc/kernel", "o i -> i o"),
            Carried(r"fc\.bias", "the Inception Score is computed without it"),
            Carried(r".*\.num_batches_tracked", "counts the batches of a training"),
        ]
