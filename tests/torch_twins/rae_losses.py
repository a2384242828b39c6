"""Twin of what trains the RAE's decoder: LPIPS, the discriminator and the adversarial losses.

Sources: "Diffusion Transformers with Representation Autoencoders", arXiv 2510.11690; LPIPS, arXiv
1801.03924; the discriminator is that of StyleGAN-T, arXiv 2301.09515, on the features of DINO,
arXiv 2104.14294; DiffAugment, arXiv 2006.10738. Written from the project's extract of the authors'
conventions and facts read in their source. The names in the state dicts are those of the published
files: torchvision's VGG-16 and LPIPS' linear layers, DINO's backbone, the authors' heads.

Images are [B, 3, H, W]. The decoder's are in [0, 1]; LPIPS, the augmentation and the discriminator
take [-1, 1] (twice the image minus one), where nothing is clamped unless it is said.
"""

import math

import torch
from torch import nn

from ._numpy_io import numpy_io
from .dit import Attention, Mlp, PatchEmbed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VGG_WIDTHS = (64, 128, 256, 512, 512)
VGG_CONVOLUTIONS = (2, 2, 3, 3, 3)
LPIPS_SHIFT = (-0.030, -0.088, -0.188)
LPIPS_SCALE = (0.458, 0.448, 0.450)


def _channels(values, x):
    """Gives one number for each channel x's type and the shape [C, 1, 1]."""
    return torch.tensor(values, dtype=x.dtype)[:, None, None]


class Lin(nn.Module):
    """LPIPS' weighted sum over channels; nothing is where the original has dropout.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels):
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x):
        """Maps [B, C, H, W] to [B, 1, H, W]."""
        return self.model(x)


class LPIPS(nn.Module):
    """Learned perceptual distance, version 0.1 with VGG-16.

    Source: arXiv 1801.03924.

    Args:
        widths: Channels in each of VGG's five stages.
    """

    def __init__(self, widths=VGG_WIDTHS):
        super().__init__()
        layers, channels = [], 3
        for width, convolutions in zip(widths, VGG_CONVOLUTIONS):
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        for index, width in enumerate(widths):
            setattr(self, f"lin{index}", Lin(width))

    def taps(self, x):
        """Returns the output of each stage for images [B, 3, H, W] in [-1, 1]."""
        x = (x - _channels(LPIPS_SHIFT, x)) / _channels(LPIPS_SCALE, x)
        outputs = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                outputs.append(x)
            x = layer(x)
        return [*outputs, x]

    def forward(self, x, y):
        """Returns the distances of images.

        Args:
            x: Tensor [B, 3, H, W] in [-1, 1]; H and W are at least 16.
            y: Tensor [B, 3, H, W] in [-1, 1].

        Returns:
            Tensor [B]; the loss is its mean.
        """
        total = 0.0
        for index, (one, other) in enumerate(zip(self.taps(x), self.taps(y))):
            difference = (unit_channels(one) - unit_channels(other)).square()
            total = total + getattr(self, f"lin{index}")(difference).mean(dim=(1, 2, 3))
        return total


def unit_channels(x):
    """Divides [B, C, H, W] by its norm over channels, plus 1e-10.

    Where all channels are zero the gradient is zero too. (The authors' is not a number there.)
    """
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


class DinoBlock(nn.Module):
    """Pre-norm transformer block, with the tanh form of GELU unlike the published DINO.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
        mlp_ratio: Width of the perceptron over the hidden size.
    """

    def __init__(self, hidden_size, num_heads, mlp_ratio):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.mlp = Mlp(hidden_size, round(hidden_size * mlp_ratio))

    def forward(self, x):
        """Maps [B, T, D] to [B, T, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Dino(nn.Module):
    """Frozen DINO backbone (ViT-S/8 by default) that returns its tokens at several depths.

    Source: arXiv 2104.14294, as the discriminator of the RAE has it.

    Args:
        image_size: Side to which every image is resized first.
        patch_size: Side of a patch.
        hidden_size: Features of a token.
        depth: Number of blocks.
        num_heads: Number of heads.
        key_depths: Blocks whose output is returned, counted from 0, in ascending order.
        mlp_ratio: Width of the perceptrons over the hidden size.
    """

    def __init__(
        self,
        image_size=224,
        patch_size=8,
        hidden_size=384,
        depth=12,
        num_heads=6,
        key_depths=(2, 5, 8, 11),
        mlp_ratio=4.0,
    ):
        super().__init__()
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.key_depths = key_depths
        tokens = (image_size // patch_size) ** 2
        self.patch_embed = PatchEmbed(patch_size, 3, hidden_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, hidden_size))
        self.blocks = nn.ModuleList(
            DinoBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)  # in the published file, and not used
        self.requires_grad_(False)

    def forward(self, x):
        """Returns the features of images.

        Args:
            x: Tensor [B, 3, H, W] in [-1, 1]. It is resized bilinearly, without antialiasing,
                before it is brought to ImageNet's mean and deviation.

        Returns:
            List of tensors [B, D, T] without the class token and not normed: that of the last
            block, then those of key_depths (of which the last block usually is one, too).
        """
        size = (self.image_size, self.image_size)
        x = nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = ((x + 1) / 2 - _channels(IMAGENET_MEAN, x)) / _channels(IMAGENET_STD, x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1)
        x = x + self.pos_embed
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x[:, 1:].transpose(1, 2))
        return [outputs[-1], *(outputs[depth] for depth in self.key_depths)]


def without_key_bias(state_dict):
    """Returns DINO's state dict with zeros for the bias of keys, as the authors load it.

    Softmax does not depend on that bias, so the features stay the same but for rounding.
    """
    result = dict(state_dict)
    for name, value in state_dict.items():
        if name.endswith(".attn.qkv.bias"):
            q, k, v = value.chunk(3)
            result[name] = torch.cat([q, torch.zeros_like(k), v])
    return result


class SpectralConv1d(nn.Module):
    """Circular convolution whose weight is divided by an estimate of its largest singular value.

    The estimate comes from one step of the power iteration at each call in training mode, and from
    the vectors as they are otherwise; the gradient takes the vectors for constants. This is
    `torch.nn.utils.spectral_norm`, not its successor among the parametrisations.

    Args:
        in_size: Channels of the input.
        out_size: Channels of the output.
        kernel_size: Odd number of taps.
    """

    def __init__(self, in_size, out_size, kernel_size):
        super().__init__()
        plain = nn.Conv1d(in_size, out_size, kernel_size)  # for its initial values
        self.weight_orig = plain.weight
        self.bias = plain.bias
        self.register_buffer("weight_u", _unit(torch.randn(out_size)))
        self.register_buffer("weight_v", _unit(torch.randn(in_size * kernel_size)))

    def forward(self, x):
        """Maps [B, in_size, T] to [B, out_size, T]; in training mode, changes u and v."""
        matrix = self.weight_orig.flatten(start_dim=1)
        if self.training:
            with torch.no_grad():
                self.weight_v = _unit(matrix.T @ self.weight_u)
                self.weight_u = _unit(matrix @ self.weight_v)
        sigma = self.weight_u @ (matrix @ self.weight_v)
        half = self.weight_orig.shape[-1] // 2
        x = nn.functional.pad(x, (half, half), mode="circular")
        return nn.functional.conv1d(x, self.weight_orig / sigma, self.bias)


def _unit(vector):
    """Divides a vector by its norm, or by 1e-12 if that is larger."""
    return vector / torch.linalg.vector_norm(vector).clamp(min=1e-12)


class TokenNorm(nn.Module):
    """Norm over the tokens of a sample, channel by channel, with scale and shift, in float32.

    In the authors' source this is a batch norm on virtual batches, which have one sample each. It
    keeps no statistics.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        """Maps [B, C, T] to [B, C, T], at least float32."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = x - x.mean(dim=2, keepdim=True)
        deviation = torch.sqrt(centred.square().mean(dim=2, keepdim=True) + 1e-6)
        return centred / deviation * self.weight[:, None] + self.bias[:, None]


class Residual(nn.Module):
    """Adds a function's output to its input and divides by the square root of two.

    Args:
        fn: The function.
    """

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        """Maps [B, C, T] to [B, C, T]."""
        return (self.fn(x) + x) / math.sqrt(2)


def head_block(channels, kernel_size):
    """Convolution, norm and LeakyReLU, in this order."""
    return nn.Sequential(
        SpectralConv1d(channels, channels, kernel_size), TokenNorm(channels), nn.LeakyReLU(0.2)
    )


class DinoDiscriminator(nn.Module):
    """Convolutional heads over the sequences of DINO's tokens, one for each tap.

    Source: arXiv 2301.09515, arXiv 2510.11690. The backbone is no part of the state dict.

    Args:
        dino: A Dino.
        kernel_size: Odd number of taps of the residual block's convolution.
    """

    def __init__(self, dino, kernel_size=9):
        super().__init__()
        self.backbone = (dino,)  # a tuple hides it from the module
        channels = dino.hidden_size
        self.heads = nn.ModuleList(
            nn.Sequential(
                head_block(channels, 1),
                Residual(head_block(channels, kernel_size)),
                SpectralConv1d(channels, 1, 1),
            )
            for _ in range(len(dino.key_depths) + 1)
        )

    def forward(self, x):
        """Maps images [B, 3, H, W] in [-1, 1] to logits [B, heads * T], head by head."""
        features = self.backbone[0](x)
        logits = [head(tokens).flatten(start_dim=1) for head, tokens in zip(self.heads, features)]
        return torch.cat(logits, dim=1)


@numpy_io
def diff_augment(x, u):
    """Augments images at random: translation, then brightness, saturation and contrast.

    Every sample has its own numbers; reals and fakes do, too. The order is the authors' and not
    that of the DiffAugment paper.

    Args:
        x: Tensor [B, 3, H, W] in [-1, 1].
        u: Tensor [5 or more, B], uniform in [0, 1): shift of the rows, shift of the columns,
            brightness, saturation, contrast. (The authors draw two more for a cutout that is off.)

    Returns:
        Tensor [B, 3, H, W], not clamped.
    """
    x = torch.stack([_translate(image, *shifts) for image, shifts in zip(x, u[:2].T)])
    brightness, saturation, contrast = u[2:5].to(x.dtype)[:, :, None, None, None]
    x = x + (brightness - 0.5)
    mean = x.mean(dim=1, keepdim=True)
    x = (x - mean) * (2 * saturation) + mean
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def _translate(image, row_u, column_u):
    """Moves an image [3, H, W] by up to an eighth of its sides; zeros come in.

    A large number moves the content up or left.
    """
    height, width = image.shape[-2:]
    reach = (round(0.125 * height), round(0.125 * width))
    row, column = (math.floor(u * (2 * r + 1)) for u, r in zip((row_u, column_u), reach))
    padded = nn.functional.pad(image, (reach[1], reach[1], reach[0], reach[0]))
    return padded[:, row : row + height, column : column + width]


@numpy_io
def quantise(x):
    """Rounds images in [-1, 1] to 256 levels, after a clamp; halves go to the even level."""
    return torch.round((x.clamp(-1, 1) + 1) * 127.5) / 127.5 - 1


@numpy_io
def discriminator_loss(real, fake):
    """Hinge loss of logits [B, N] of real and fake images; a scalar."""
    return 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())


@numpy_io
def generator_loss(fake):
    """Loss of the decoder for logits [B, N] of its images; a scalar."""
    return -fake.mean()


def adaptive_weight(reconstruction, adversarial, last_layer, largest=1e4):
    """Weight that makes the adversarial gradient as large as that of the reconstruction.

    Args:
        reconstruction: Scalar loss, L1 plus LPIPS.
        adversarial: Scalar loss.
        last_layer: Weight of the decoder's last layer, in which both gradients are measured.
        largest: Upper bound.

    Returns:
        Scalar without a gradient.
    """
    norms = [
        torch.linalg.vector_norm(torch.autograd.grad(loss, last_layer, retain_graph=True)[0])
        for loss in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-6)).clamp(0.0, largest).detach()


def decoder_objective(
    images, reconstruction, lpips, last_layer, discriminator=None, u=None, disc_weight=0.75
):
    """Loss of the decoder: L1, LPIPS and, later in training, the adversarial loss.

    The discriminator runs in evaluation mode: its spectral norms do not iterate.

    Args:
        images: Tensor [B, 3, H, W] in [0, 1].
        reconstruction: Tensor [B, 3, H, W], decoded from noisy latents, neither clamped nor
            quantised.
        lpips: An LPIPS.
        last_layer: As in adaptive_weight.
        discriminator: A DinoDiscriminator, or None before the adversarial loss starts.
        u: Random numbers of diff_augment for the reconstruction.
        disc_weight: Factor of the adversarial loss, besides the adaptive one.

    Returns:
        Dict of scalars: total, l1, lpips, and with a discriminator adversarial and weight.
    """
    l1 = (reconstruction - images).abs().mean()
    perceptual = lpips(2 * images - 1, 2 * reconstruction - 1).mean()
    result = {"total": l1 + perceptual, "l1": l1, "lpips": perceptual}
    if discriminator is None:
        return result
    discriminator.eval()
    adversarial = generator_loss(discriminator(diff_augment(2 * reconstruction - 1, u)))
    weight = adaptive_weight(l1 + perceptual, adversarial, last_layer)
    total = l1 + perceptual + disc_weight * weight * adversarial
    return {**result, "total": total, "adversarial": adversarial, "weight": weight}


def discriminator_objective(images, reconstruction, discriminator, fake_u, real_u):
    """Loss of the discriminator; its spectral norms iterate once for fakes, then once for reals.

    Args:
        images: Tensor [B, 3, H, W] in [0, 1].
        reconstruction: Tensor [B, 3, H, W] of the decoder after its update, from latents without
            noise.
        discriminator: A DinoDiscriminator.
        fake_u: Random numbers of diff_augment for the reconstruction.
        real_u: Random numbers of diff_augment for the images.

    Returns:
        Scalar.
    """
    discriminator.train()
    fakes = quantise(2 * reconstruction.detach() - 1)
    fake = discriminator(diff_augment(fakes, fake_u))
    real = discriminator(diff_augment(2 * images - 1, real_u))
    return discriminator_loss(real, fake)


def randomise_(model, seed):
    """Fills parameters and spectral norms' vectors with values that make all parts matter.

    Args:
        model: An LPIPS, Dino or DinoDiscriminator; it is changed in place.
        seed: Integer seed. The same seed gives the same values.

    Returns:
        The model.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if "weight" not in name:
                values = 0.1 * values
            elif parameter.ndim == 1:  # of a norm
                values = 1 + 0.1 * values
            else:
                values = values * math.sqrt(2 / parameter[0].numel())
            parameter.copy_(values.abs() if name.startswith("lin") else values)
        for name, buffer in model.named_buffers():
            if name.endswith(("weight_u", "weight_v")):
                buffer.copy_(_unit(torch.randn(buffer.shape, generator=generator)))
    return model
