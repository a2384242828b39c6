"""Twin of the Inception-v3 that FID is computed with.

Sources: "Rethinking the Inception Architecture", arXiv 1512.00567; where TensorFlow's network of
2015-12-05 differs from the paper's (averages without the padding, a maximum in the last block, 1008
classes), facts read in pytorch-fid. The names in the state dict are those of its file.
"""

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 1008


class BasicConv2d(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride=1, padding=None):
        super().__init__()
        rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        if padding is None:  # Whatever keeps the size, unless it is to be halved.
            padding = (rows // 2, columns // 2) if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, (rows, columns), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def average(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def maximum(x):
    return F.max_pool2d(x, 3, 1, 1)


class Block(nn.Module):
    """Adds layers by name, and runs chains of them."""

    def chain(self, name, inputs, *layers, numbered=True):
        for number, (outputs, kernel, *stride) in enumerate(layers, start=1):
            key = f"{name}_{number}" if numbered else name
            setattr(self, key, BasicConv2d(inputs, outputs, kernel, *stride))
            inputs = outputs

    def run(self, name, x):
        number = 1
        while hasattr(self, f"{name}_{number}"):
            x, number = getattr(self, f"{name}_{number}")(x), number + 1
        return x


class InceptionA(Block):
    def __init__(self, inputs, pooled):
        super().__init__()
        self.chain("branch1x1", inputs, (64, 1), numbered=False)
        self.chain("branch5x5", inputs, (48, 1), (64, 5))
        self.chain("branch3x3dbl", inputs, (64, 1), (96, 3), (96, 3))
        self.chain("branch_pool", inputs, (pooled, 1), numbered=False)

    def forward(self, x):
        middle = self.run("branch5x5", x), self.run("branch3x3dbl", x)
        return torch.cat([self.branch1x1(x), *middle, self.branch_pool(average(x))], 1)


class InceptionB(Block):
    def __init__(self, inputs):
        super().__init__()
        self.chain("branch3x3", inputs, (384, 3, 2), numbered=False)
        self.chain("branch3x3dbl", inputs, (64, 1), (96, 3), (96, 3, 2))

    def forward(self, x):
        pooled = F.max_pool2d(x, 3, 2)
        return torch.cat([self.branch3x3(x), self.run("branch3x3dbl", x), pooled], 1)


class InceptionC(Block):
    def __init__(self, inputs, width):
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.chain("branch1x1", inputs, (192, 1), numbered=False)
        self.chain("branch7x7", inputs, (width, 1), (width, row), (192, column))
        layers = [(width, 1), (width, column), (width, row), (width, column), (192, row)]
        self.chain("branch7x7dbl", inputs, *layers)
        self.chain("branch_pool", inputs, (192, 1), numbered=False)

    def forward(self, x):
        middle = self.run("branch7x7", x), self.run("branch7x7dbl", x)
        return torch.cat([self.branch1x1(x), *middle, self.branch_pool(average(x))], 1)


class InceptionD(Block):
    def __init__(self, inputs):
        super().__init__()
        self.chain("branch3x3", inputs, (192, 1), (320, 3, 2))
        self.chain("branch7x7x3", inputs, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2))

    def forward(self, x):
        pooled = F.max_pool2d(x, 3, 2)
        return torch.cat([self.run("branch3x3", x), self.run("branch7x7x3", x), pooled], 1)


class InceptionE(Block):
    def __init__(self, inputs, pool):
        super().__init__()
        self.pool = pool
        self.chain("branch1x1", inputs, (320, 1), numbered=False)
        self.chain("branch3x3", inputs, (384, 1))
        self.chain("branch3x3dbl", inputs, (448, 1), (384, 3))
        for name in ("branch3x3_2", "branch3x3dbl_3"):
            setattr(self, f"{name}a", BasicConv2d(384, 384, (1, 3)))
            setattr(self, f"{name}b", BasicConv2d(384, 384, (3, 1)))
        self.chain("branch_pool", inputs, (192, 1), numbered=False)

    def forward(self, x):
        one, two = self.run("branch3x3", x), self.run("branch3x3dbl", x)
        one = [self.branch3x3_2a(one), self.branch3x3_2b(one)]
        two = [self.branch3x3dbl_3a(two), self.branch3x3dbl_3b(two)]
        return torch.cat([self.branch1x1(x), *one, *two, self.branch_pool(self.pool(x))], 1)


class InceptionV3(nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3, padding=0)
        self.Mixed_5b, self.Mixed_5c = InceptionA(192, 32), InceptionA(256, 64)
        self.Mixed_5d, self.Mixed_6a = InceptionA(288, 64), InceptionB(288)
        self.Mixed_6b, self.Mixed_6c = InceptionC(768, 128), InceptionC(768, 160)
        self.Mixed_6d, self.Mixed_6e = InceptionC(768, 160), InceptionC(768, 192)
        self.Mixed_7a, self.Mixed_7b = InceptionD(768), InceptionE(1280, average)
        self.Mixed_7c, self.fc = InceptionE(2048, maximum), nn.Linear(2048, CLASSES)

    def forward(self, x):
        """Maps normalised [B, 3, 299, 299] to pool, ADM's spatial features, and logits."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6c(self.Mixed_6b(x))
        spatial = self.Mixed_6d.branch1x1(x)[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_6e(self.Mixed_6d(x))
        pool = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))
        return pool, spatial, pool @ self.fc.weight.T
