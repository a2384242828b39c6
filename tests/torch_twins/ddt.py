"""Twin of DDT, the decoupled diffusion transformer.

Source: DDT, arXiv 2504.05741. Written from the project's extract of the authors' conventions. The
names in the state dict are those of the released checkpoints, without the prefix of the trainer.

DDT's clock is SiT's: t = 0 is noise, t = 1 is data, x_t = t data + (1 - t) noise, and the output
is the velocity data - noise.
"""

import math

import numpy as np
import torch
from torch import nn

from . import dit

TIME_PERIOD = 10.0
ROPE_EXTENT = 16.0
ROPE_THETA = 10000.0


def timestep_embedding(t, dim=dit.TIME_FREQUENCIES, dtype=torch.float32):
    """Sinusoidal features of the time, cosines first, with frequencies between 1 and 1 / 10.

    Args:
        t: Tensor [B] in [0, 1].
        dim: Even number of features.
        dtype: Floating-point type of the computation (float32 in the paper's code).

    Returns:
        Tensor [B, dim].
    """
    half = dim // 2
    frequency = torch.exp(-math.log(TIME_PERIOD) * torch.arange(half, dtype=dtype) / half)
    angle = t.to(dtype)[:, None] * frequency[None, :]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)


def rope_angles(grid, head_dim):
    """Angles of DDT's rotary position embedding.

    Along either axis the positions go from 0 to 16, both included, whatever the size of the grid.
    The pairs of features take turns: column, row, column, row, ...

    Args:
        grid: Number of patches (rows, columns).
        head_dim: Features of a head, a multiple of 4.

    Returns:
        Tensor [rows * columns, head_dim / 2], float64: one angle for each pair of features.
    """
    frequency = ROPE_THETA ** (-4.0 * np.arange(head_dim // 4) / head_dim)
    row = np.linspace(0.0, ROPE_EXTENT, grid[0]).repeat(grid[1])
    column = np.tile(np.linspace(0.0, ROPE_EXTENT, grid[1]), grid[0])
    angles = np.stack([np.outer(column, frequency), np.outer(row, frequency)], axis=-1)
    return torch.from_numpy(angles.reshape(len(row), head_dim // 2))


def rotate_pairs(x, cos, sin):
    """Turns each pair of neighbouring features (0 and 1, 2 and 3, ...) by its angle.

    Args:
        x: Tensor [..., T, d].
        cos: Tensor [T, d / 2], cosines of the angles.
        sin: Tensor [T, d / 2], sines of the angles.

    Returns:
        Tensor of x's shape.
    """
    first, second = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(start_dim=-2)


def modulate(x, shift, scale):
    """Applies adaLN: x [B, T, D] times (1 + scale) plus shift, both [B, 1 or T, D]."""
    return x * (1 + scale) + shift


class RMSNorm(nn.Module):
    """Root-mean-square norm with a scale, in at least float32.

    Args:
        dim: Number of features.
    """

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        """Maps [..., dim] to [..., dim]."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide / torch.sqrt(wide.square().mean(dim=-1, keepdim=True) + 1e-6)
        return normed.to(x.dtype) * self.weight


class TimestepEmbedder(dit.TimestepEmbedder):
    """DiT's, with DDT's frequencies."""

    def forward(self, t):
        return self.mlp(timestep_embedding(t, dtype=self.mlp[0].weight.dtype))


class PatchEmbed(nn.Module):
    """Linear projection of patches that have been cut already.

    Args:
        patch_dim: Values in a patch.
        hidden_size: Features of a token.
    """

    def __init__(self, patch_dim, hidden_size):
        super().__init__()
        self.proj = nn.Linear(patch_dim, hidden_size)

    def forward(self, patches):
        """Maps [B, T, patch_dim] to [B, T, D]."""
        return self.proj(patches)


class Attention(nn.Module):
    """Multi-head self-attention with normed and rotated queries and keys.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
    """

    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.q_norm = RMSNorm(hidden_size // num_heads)
        self.k_norm = RMSNorm(hidden_size // num_heads)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x, cos, sin):
        """Maps [B, T, D] to [B, T, D]; cos and sin are [T, d / 2]."""
        batch, tokens, dim = x.shape
        head_dim = dim // self.num_heads
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q = rotate_pairs(self.q_norm(q), cos, sin)
        k = rotate_pairs(self.k_norm(k), cos, sin)
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(head_dim), dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class SwiGLU(nn.Module):
    """Gated perceptron without biases, about as large as a plain one of 4 times the width.

    Args:
        hidden_size: Features of a token.
    """

    def __init__(self, hidden_size):
        super().__init__()
        mlp_size = int(2 * (4 * hidden_size) / 3)
        self.w1 = nn.Linear(hidden_size, mlp_size, bias=False)
        self.w3 = nn.Linear(hidden_size, mlp_size, bias=False)
        self.w2 = nn.Linear(mlp_size, hidden_size, bias=False)

    def forward(self, x):
        """Maps [B, T, D] to [B, T, D]."""
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Transformer block whose condition is one vector, or one for each token.

    There is no activation before adaLN's linear layer: the condition comes activated.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
    """

    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.norm1 = RMSNorm(hidden_size)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = RMSNorm(hidden_size)
        self.mlp = SwiGLU(hidden_size)
        self.adaLN_modulation = nn.Sequential(nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x, c, cos, sin):
        """Maps tokens [B, T, D] and the condition [B, 1 or T, D] to [B, T, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), cos, sin)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Last norm, modulation token by token, and projection to patches.

    Args:
        hidden_size: Features of a token.
        patch_dim: Values in a patch.
    """

    def __init__(self, hidden_size, patch_dim):
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, patch_dim)
        self.adaLN_modulation = nn.Sequential(nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x, c):
        """Maps tokens [B, T, D] and the condition [B, T, D] to [B, T, patch_dim]."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DDT(nn.Module):
    """Decoupled diffusion transformer: an encoder's output conditions the decoder.

    Source: arXiv 2504.05741. All blocks are alike, the first ``encoder_depth`` of the list are the
    encoder. Labels are dropped by the trainer, not in here.

    Args:
        input_size: Side of the (latent) image, or its (height, width).
        patch_size: Side of a patch.
        in_channels: Channels of the image.
        hidden_size: Features of a token.
        encoder_depth: Number of blocks of the encoder.
        decoder_depth: Number of blocks of the decoder.
        num_heads: Number of heads.
        num_classes: Number of classes; the label with this value is the null label.
    """

    def __init__(
        self,
        input_size,
        patch_size,
        in_channels,
        hidden_size,
        encoder_depth,
        decoder_depth,
        num_heads,
        num_classes=1000,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.encoder_depth = encoder_depth
        self.head_dim = hidden_size // num_heads
        size = (input_size, input_size) if isinstance(input_size, int) else input_size
        self.grid = (size[0] // patch_size, size[1] // patch_size)
        patch_dim = in_channels * patch_size * patch_size
        self.x_embedder = PatchEmbed(patch_dim, hidden_size)
        self.s_embedder = PatchEmbed(patch_dim, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = dit.LabelEmbedder(num_classes, hidden_size)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads) for _ in range(encoder_depth + decoder_depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_dim)
        self.initialise_()

    def initialise_(self):
        """Changes torch's default initial values where the paper's code does.

        Among the adaLN layers only the last one starts at zero.
        """
        for embedder in (self.x_embedder, self.s_embedder):
            nn.init.xavier_uniform_(embedder.proj.weight)
            nn.init.zeros_(embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        for linear in (self.final_layer.adaLN_modulation[0], self.final_layer.linear):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def patchify(self, x):
        """Maps [B, C, H, W] to [B, T, C * p * p], features in the order (C, row, column)."""
        rows, columns = self.grid
        p = self.patch_size
        x = x.reshape(len(x), self.in_channels, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(len(x), rows * columns, -1)

    def unpatchify(self, tokens):
        """Inverts patchify."""
        rows, columns = self.grid
        p = self.patch_size
        x = tokens.reshape(len(tokens), rows, columns, self.in_channels, p, p)
        x = x.permute(0, 3, 1, 4, 2, 5)
        return x.reshape(len(tokens), self.in_channels, rows * p, columns * p)

    def forward(self, x, t, y, s=None):
        """Runs the network.

        Args:
            x: Tensor [B, C, H, W].
            t: Tensor [B] in [0, 1].
            y: Tensor [B], int64 labels.
            s: Optional tensor [B, T, D], the encoder's output of an earlier call; it takes the
                place of a run of the encoder.

        Returns:
            Velocity [B, C, H, W], and the encoder's output s [B, T, D].
        """
        angles = rope_angles(self.grid, self.head_dim)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        patches = self.patchify(x)
        time = self.t_embedder(t)[:, None, :]
        if s is None:
            c = nn.functional.silu(time + self.y_embedder(y)[:, None, :])
            s = self.s_embedder(patches)
            for block in self.blocks[: self.encoder_depth]:
                s = block(s, c, cos, sin)
            s = nn.functional.silu(time + s)
        tokens = self.x_embedder(patches)
        for block in self.blocks[self.encoder_depth :]:
            tokens = block(tokens, s, cos, sin)
        return self.unpatchify(self.final_layer(tokens, s)), s


def randomise_(model, seed):
    """Fills every parameter with normal values, small but for norms and attention, in place.

    Those of RMSNorm are around one. The layer before attention gets larger ones than the others,
    for attention to be so uneven that the rotary positions show in the output. Fixed tables
    (pos_embed and buffers) stay as they are.

    Args:
        model: A module.
        seed: Integer seed. The same seed gives the same values.

    Returns:
        The model.
    """
    dit.randomise_(model, seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.weight += 1
            if hasattr(module, "qkv"):
                module.qkv.weight *= 5
    return model
