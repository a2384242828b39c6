"""FID's Inception-v3, as pytorch-fid and as TensorFlow keep it (arXiv 1512.00567)."""

import jax
import jax.numpy as jnp

from dit_jax.errors import InputError
from dit_jax.interop.layout import Found, Layout
from dit_jax.interop.rules import Carried, normed_conv, tensor
from dit_jax.metrics.inception import BLOCKS, CLASSES, STEM, InceptionV3

_MARKS = ("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight")
_GRAPH_LEAVES = {
    "kernel": "conv2d_params",
    "scale": "batchnorm/gamma",
    "bias": "batchnorm/beta",
    "mean": "batchnorm/moving_mean",
    "variance": "batchnorm/moving_variance",
}


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
        return _found()

    def exports(self, found):
        return isinstance(found.module, InceptionV3)

    def entries(self, found):
        del found
        keys = {path: path.replace("/", ".") for path in graph_nodes()}
        rules = [normed_conv(f"{key}.conv", f"{key}.bn", path) for path, key in keys.items()]
        return [
            *(rule for layer in rules for rule in layer),
            tensor("fc.weight", "fc/kernel", "o i -> i o"),
            Carried(r"fc\.bias", "the Inception Score is computed without it"),
            Carried(r".*\.num_batches_tracked", "counts the batches of a training"),
        ]


class InceptionGraphLayout(Layout):
    """The graph classify_image_graph_def.pb, which ADM's evaluator runs; it is read alone."""

    name = "inception-graph"
    licence = "Apache-2.0"

    def matches(self, shapes):
        return shapes.keys() >= {"mixed_10/tower_2/conv/conv2d_params", "softmax/weights"}

    def describe(self, shapes, config):
        del shapes, config
        return _found()

    def exports(self, found):
        return False

    def entries(self, found):
        del found
        return [
            *(
                tensor(f"{node}/{theirs}", f"{path}/{ours}")
                for path, node in graph_nodes().items()
                for ours, theirs in _GRAPH_LEAVES.items()
            ),
            tensor("softmax/weights", "fc/kernel"),
            Carried("softmax/biases", "the Inception Score is computed without it"),
            Carried("(Sub|Mul)/y", "normalises pixels"),
        ]


def graph_nodes() -> dict[str, str]:
    """Names of the graph's convolutions by paths of the parameters here.

    In a block, the branch of one convolution has no scope of its own, and the others are towers.
    """
    nodes = {name: _nth("conv", i) for i, name in enumerate(STEM)}
    for i, (block, branches) in enumerate(BLOCKS.items()):
        towers = 0
        for branch in branches:
            names, scope = branch.names(), _nth("mixed", i)
            if len(names) > 1 or branch.pool:
                scope, towers = f"{scope}/{_nth('tower', towers)}", towers + bool(names)
            leaves = [_nth("conv", j) for j in range(len(branch.convs))]
            leaves += ["mixed/conv", "mixed/conv_1"] if branch.fork else []
            nodes |= {f"{block}/{name}": f"{scope}/{leaf}" for name, leaf in zip(names, leaves)}
    return nodes


def _nth(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def _found() -> Found:
    return Found(InceptionV3(), (jax.random.key(0), jnp.zeros((1, 299, 299, 3))))
