"""LPIPS with VGG-16: torchvision's network and the authors' linear layers (arXiv 1801.03924)."""

import jax
import jax.numpy as jnp

from dit_jax.interop.layout import Found, Layout, agreed_length
from dit_jax.interop.rules import Carried, conv, tensor
from dit_jax.training.reconstruction.perceptual import VGG16, VGG16_GROUPS


def _numbers() -> list[list[int]]:
    """Where each group's convolutions are in torchvision's list of layers."""
    numbers, start = [], 0
    for count in VGG16_GROUPS:
        numbers.append([start + 2 * i for i in range(count)])  # A ReLU follows each.
        start += 2 * count + 1  # And a pooling each group.
    return numbers


_NUMBERS = _numbers()


class LPIPSLayout(Layout):
    """One state dict made of the two published files, whose keys differ.

    The network is torchvision's vgg16-397923af.pth, the linear layers are lpips' weights/v0.1/
    vgg.pth. Joined, they are one file to convert:

        torch.save(torch.load("vgg16-397923af.pth") | torch.load("vgg.pth"), "lpips.pth")
    """

    name = "lpips"
    licence = "BSD-3-Clause (torchvision's network), BSD-2-Clause (LPIPS' linear layers)"

    def matches(self, shapes):
        # Either file alone is of this family too, so that what is missing is named.
        last = {len(shapes.get(f"features.{number}.weight", ())) for number in _NUMBERS[-1]}
        return last == {4} or "lin4.model.1.weight" in shapes

    def describe(self, shapes, config):
        del config
        widths = []
        for i, numbers in enumerate(_NUMBERS):
            convolutions = rf"features\.({'|'.join(map(str, numbers))})\.\w+"
            axes = {convolutions: 0, rf"lin{i}\.model\.1\.weight": 1}
            widths.append(agreed_length(shapes, axes))
        return Found(VGG16(tuple(widths)), (jax.random.key(0), jnp.zeros((1, 32, 32, 3))))

    def exports(self, found):
        return type(found.module) is VGG16

    def entries(self, found):
        del found
        entries = [Carried(r"classifier\..*", "classifies ImageNet")]
        for i, numbers in enumerate(_NUMBERS):
            entries.append(tensor(f"lin{i}.model.1.weight", f"weight_{i}", "1 c 1 1 -> c"))
            for j, number in enumerate(numbers):
                entries += conv(f"features.{number}", f"conv_{i}_{j}")
        return entries
