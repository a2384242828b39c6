"""Twin of the representation autoencoder (RAE): its latents, and the decoder back to pixels.

Source: "Diffusion Transformers with Representation Autoencoders", arXiv 2510.11690. Written from
the project's extract of the authors' conventions and facts read in their source. The names in the
state dict are those of the released decoders.

The encoder is a frozen vision transformer whose last norm has no scale and shift; this file takes
its tokens as they come, without class and register tokens. Latents are [B, C, H, W], tokens
[B, H * W, C] in row-major order.
"""

import math

import torch
from torch import nn

from ._numpy_io import numpy_io
from .dit import sincos_pos_embed

EPSILON = 1e-5


@numpy_io
def encoder_input(images, size, mean, std):
    """Brings images to the size and the range that the encoder expects.

    Args:
        images: Tensor [B, 3, H, W] in [0, 1].
        size: Side of the encoder's image. Other images are resized with torch's bicubic kernel
            (a = -0.75), without antialiasing.
        mean: Tensor [3] of the encoder's own preprocessing.
        std: Tensor [3].

    Returns:
        Tensor [B, 3, size, size].
    """
    if images.shape[-2:] != (size, size):
        images = nn.functional.interpolate(
            images, size=(size, size), mode="bicubic", align_corners=False
        )
    return (images - mean[:, None, None]) / std[:, None, None]


@numpy_io
def encode_latents(tokens, mean, var, noise=None, sigma=None):
    """Turns the encoder's tokens to latents: noise first (decoder training), then statistics.

    Args:
        tokens: Tensor [B, H * W, C].
        mean: Tensor [C, H, W]; each position has its own statistics.
        var: Tensor [C, H, W].
        noise: Optional standard normal tensor [B, H * W, C].
        sigma: Tensor [B], one level of noise for each sample (uniform in [0, 0.8] in the paper's
            code).

    Returns:
        Tensor [B, C, H, W].
    """
    if noise is not None:
        tokens = tokens + sigma[:, None, None] * noise
    latents = tokens.transpose(1, 2).reshape(len(tokens), *mean.shape)
    return (latents - mean) / torch.sqrt(var + EPSILON)


@numpy_io
def decode_latents(z, mean, var):
    """Turns latents back to tokens; the inverse of encode_latents without noise.

    Args:
        z: Tensor [B, C, H, W].
        mean: Tensor [C, H, W].
        var: Tensor [C, H, W].

    Returns:
        Tensor [B, H * W, C].
    """
    return (z * torch.sqrt(var + EPSILON) + mean).flatten(start_dim=2).transpose(1, 2)


@numpy_io
def to_pixels(x, mean, std):
    """Undoes the normalisation of pixels: x [B, 3, H, W] times std [3] plus mean [3], unclamped."""
    return x * std[:, None, None] + mean[:, None, None]


class Dense(nn.Module):
    """A linear layer by the name of ``dense``, as the released decoders have it.

    Args:
        in_size: Features of the input.
        out_size: Features of the output.
    """

    def __init__(self, in_size, out_size):
        super().__init__()
        self.dense = nn.Linear(in_size, out_size)

    def forward(self, x):
        """Maps [B, T, in_size] to [B, T, out_size]."""
        return self.dense(x)


class SelfAttention(nn.Module):
    """Multi-head self-attention up to, and without, the output projection.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
    """

    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)

    def forward(self, x):
        """Maps [B, T, D] to [B, T, D]."""
        heads = (self.num_heads, x.shape[-1] // self.num_heads)
        q, k, v = (
            layer(x).unflatten(-1, heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(heads[1]), dim=-1)
        return (weights @ v).transpose(1, 2).flatten(start_dim=2)


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
    """

    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.attention = SelfAttention(hidden_size, num_heads)
        self.output = Dense(hidden_size, hidden_size)

    def forward(self, x):
        """Maps [B, T, D] to [B, T, D]."""
        return self.output(self.attention(x))


class Layer(nn.Module):
    """Pre-norm transformer layer with the exact GELU.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
        mlp_size: Features between the perceptron's layers.
    """

    def __init__(self, hidden_size, num_heads, mlp_size):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=1e-12)
        self.attention = Attention(hidden_size, num_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=1e-12)
        self.intermediate = Dense(hidden_size, mlp_size)
        self.output = Dense(mlp_size, hidden_size)

    def forward(self, x):
        """Maps [B, T, D] to [B, T, D]."""
        x = x + self.attention(self.layernorm_before(x))
        hidden = nn.functional.gelu(self.intermediate(self.layernorm_after(x)))
        return x + self.output(hidden)


class GeneralDecoder(nn.Module):
    """Vision transformer from the encoder's tokens to (normalised) pixels.

    Source: arXiv 2510.11690; the decoder of MAE, arXiv 2111.06377, with a trained class token of
    its own. Initial values are torch's, zeros for the class token.

    Args:
        latent_size: Features of the encoder's tokens.
        hidden_size: Features of a token.
        depth: Number of layers.
        num_heads: Number of heads.
        mlp_size: Features between the perceptrons' layers.
        patch_size: Side of a patch of pixels.
        grid: Tokens along either side of the decoder's square grid.
    """

    def __init__(
        self,
        latent_size=768,
        hidden_size=1152,
        depth=28,
        num_heads=16,
        mlp_size=4096,
        patch_size=16,
        grid=16,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.grid = grid
        self.decoder_embed = nn.Linear(latent_size, hidden_size)
        table = sincos_pos_embed(hidden_size, (grid, grid))
        table = torch.cat([torch.zeros(1, 1, hidden_size), table], dim=1)
        self.decoder_pos_embed = nn.Parameter(table, requires_grad=False)
        self.trainable_cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.decoder_layers = nn.ModuleList(
            Layer(hidden_size, num_heads, mlp_size) for _ in range(depth)
        )
        self.decoder_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.decoder_pred = nn.Linear(hidden_size, 3 * patch_size * patch_size)

    def resize(self, tokens):
        """Resizes the map of embedded tokens [B, N, D], N square, to [B, grid * grid, D]."""
        if tokens.shape[1] == self.grid * self.grid:
            return tokens
        side = math.isqrt(tokens.shape[1])
        maps = tokens.transpose(1, 2).unflatten(-1, (side, side))
        maps = nn.functional.interpolate(
            maps, size=(self.grid, self.grid), mode="bilinear", align_corners=False
        )
        return maps.flatten(start_dim=2).transpose(1, 2)

    def unpatchify(self, tokens):
        """Maps [B, T, p * p * 3], features in the order (row, column, channel), to an image."""
        p, g = self.patch_size, self.grid
        x = tokens.reshape(len(tokens), g, g, p, p, 3).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(len(tokens), 3, g * p, g * p)

    def forward(self, tokens):
        """Runs the decoder.

        Args:
            tokens: Tensor [B, N, C], without normalisation by statistics. N is a square.

        Returns:
            Tensor [B, 3, H, W] of pixels normalised as for the encoder (see to_pixels), where
            H = W = grid * patch_size.
        """
        x = self.resize(self.decoder_embed(tokens))
        x = torch.cat([self.trainable_cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.decoder_pos_embed
        for layer in self.decoder_layers:
            x = layer(x)
        patches = self.decoder_pred(self.decoder_norm(x))
        return self.unpatchify(patches[:, 1:])


def randomise_(model, seed):
    """Fills every parameter with normal values that make all parts matter, in place.

    Scales of norms are around one, and queries and keys are large enough for uneven attention. The
    position table stays as it is.

    Args:
        model: A GeneralDecoder.
        seed: Integer seed. The same seed gives the same values.

    Returns:
        The model.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "decoder_pos_embed":
                continue
            scale = 0.3 if ".query." in name or ".key." in name else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return model
