"""Twin of the DiT network (and of SiT, which is the same network read differently).

Sources: DiT, arXiv 2212.09748; SiT, arXiv 2401.08740. Written from the project's extract of the
authors' conventions. The names in the state dict are those of the released checkpoints.
"""

import math

import numpy as np
import torch
from torch import nn

TIME_FREQUENCIES = 256


def sincos_pos_embed(dim, grid):
    """Fixed two-dimensional sine and cosine position table.

    The first half of the features encodes the column, the second half the row; within each half
    all sines come before all cosines. Tokens are in row-major order.

    Args:
        dim: Number of features, a multiple of 4.
        grid: Number of patches (rows, columns).

    Returns:
        Tensor [1, rows * columns, dim], float32, computed in float64.
    """
    quarter = dim // 4
    omega = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    parts = []
    for position in (columns, rows):
        angle = position[:, None].astype(np.float64) * omega[None, :]
        parts += [np.sin(angle), np.cos(angle)]
    table = np.concatenate(parts, axis=1).astype(np.float32)
    return torch.from_numpy(table)[None]


def timestep_embedding(t, dim=TIME_FREQUENCIES, dtype=torch.float32):
    """Sinusoidal features of the time, cosines first.

    Args:
        t: Tensor [B], used as it is (DiT: 0..999; SiT: [0, 1]).
        dim: Even number of features.
        dtype: Floating-point type of the computation (float32 in the paper's code).

    Returns:
        Tensor [B, dim].
    """
    half = dim // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=dtype) / half)
    angle = t.to(dtype)[:, None] * frequency[None, :]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)


def modulate(x, shift, scale):
    """Applies adaLN: x [B, T, D] times (1 + scale) plus shift, both [B, D]."""
    return x * (1 + scale[:, None, :]) + shift[:, None, :]


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to the hidden size.

    Args:
        patch_size: Side of a patch.
        in_channels: Channels of the image.
        hidden_size: Features of a token.
    """

    def __init__(self, patch_size, in_channels, hidden_size):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x):
        """Maps [B, C, H, W] to [B, T, D], tokens in row-major order."""
        return self.proj(x).flatten(start_dim=2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features followed by a two-layer perceptron.

    Args:
        hidden_size: Features of the output.
    """

    def __init__(self, hidden_size):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FREQUENCIES, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, t):
        """Maps times [B] to [B, D]."""
        return self.mlp(timestep_embedding(t, dtype=self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Table of class embeddings; the row after the last class is the null label.

    Args:
        num_classes: Number of classes.
        hidden_size: Features of the output.
    """

    def __init__(self, num_classes, hidden_size):
        super().__init__()
        self.num_classes = num_classes
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, y, drop_mask=None):
        """Maps labels [B] to [B, D]; labels where drop_mask [B] is true become the null label."""
        if drop_mask is not None:
            y = torch.where(drop_mask, torch.full_like(y, self.num_classes), y)
        return self.embedding_table(y)


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
    """

    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x):
        """Maps [B, T, D] to [B, T, D]."""
        batch, tokens, dim = x.shape
        head_dim = dim // self.num_heads
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(head_dim), dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two-layer perceptron with the tanh form of GELU.

    Args:
        hidden_size: Features of a token.
        mlp_size: Features of the layer between.
    """

    def __init__(self, hidden_size, mlp_size):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, mlp_size)
        self.fc2 = nn.Linear(mlp_size, hidden_size)

    def forward(self, x):
        """Maps [B, T, D] to [B, T, D]."""
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Transformer block with adaLN-Zero conditioning.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
        mlp_ratio: Width of the perceptron over the hidden size.
    """

    def __init__(self, hidden_size, num_heads, mlp_ratio):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x, c):
        """Maps tokens [B, T, D] and the condition [B, D] to [B, T, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None, :] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None, :] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Last norm, modulation and projection to patches.

    Args:
        hidden_size: Features of a token.
        patch_size: Side of a patch.
        out_channels: Channels of the output image.
    """

    def __init__(self, hidden_size, patch_size, out_channels):
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x, c):
        """Maps tokens [B, T, D] and the condition [B, D] to [B, T, p * p * C]."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """Diffusion transformer with adaLN-Zero blocks.

    Source: arXiv 2212.09748. There is no random label dropout inside; give ``forward`` a mask.

    Args:
        input_size: Side of the (latent) image, or its (height, width).
        patch_size: Side of a patch.
        in_channels: Channels of the image.
        hidden_size: Features of a token.
        depth: Number of blocks.
        num_heads: Number of heads.
        mlp_ratio: Width of the perceptrons over the hidden size.
        num_classes: Number of classes; the label with this value is the null label.
        learn_sigma: Whether the output has a second set of channels, for the variance.
    """

    def __init__(
        self,
        input_size,
        patch_size,
        in_channels,
        hidden_size,
        depth,
        num_heads,
        mlp_ratio=4.0,
        num_classes=1000,
        learn_sigma=True,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.learn_sigma = learn_sigma
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        size = (input_size, input_size) if isinstance(input_size, int) else input_size
        self.grid = (size[0] // patch_size, size[1] // patch_size)
        table = sincos_pos_embed(hidden_size, self.grid)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialise_()

    def initialise_(self):
        """Gives every parameter except pos_embed the paper's initial distribution."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(start_dim=1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        zeroed = [layer.adaLN_modulation[1] for layer in [*self.blocks, self.final_layer]]
        for linear in [*zeroed, self.final_layer.linear]:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def unpatchify(self, tokens):
        """Maps [B, T, p * p * C], features in the order (row, column, C), to [B, C, H, W]."""
        batch = len(tokens)
        rows, columns = self.grid
        p = self.patch_size
        x = tokens.reshape(batch, rows, columns, p, p, self.out_channels)
        x = x.permute(0, 5, 1, 3, 2, 4)
        return x.reshape(batch, self.out_channels, rows * p, columns * p)

    def forward(self, x, t, y, drop_mask=None):
        """Runs the network.

        Args:
            x: Tensor [B, C, H, W].
            t: Tensor [B], integer or float; the index in the original 1000-step process.
            y: Tensor [B], int64 labels.
            drop_mask: Optional bool tensor [B]; labels where it is true become the null label.

        Returns:
            Tensor [B, 2C, H, W] (noise, then variance), or [B, C, H, W] without learn_sigma.
        """
        tokens = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y, drop_mask)
        for block in self.blocks:
            tokens = block(tokens, c)
        return self.unpatchify(self.final_layer(tokens, c))

    def forward_with_cfg(self, x, t, y, cfg_scale):
        """Runs the network with classifier-free guidance on the first three channels only.

        Args:
            x: Tensor [2n, C, H, W]; only the first n are used.
            t: Tensor [2n].
            y: Tensor [2n]; first n labels, then n null labels.
            cfg_scale: Guidance scale s in u + s * (c - u).

        Returns:
            Tensor [2n, C or 2C, H, W]. Channels 0..2 of both halves hold the guided output; the
            others hold each half's own.
        """
        half = x[: len(x) // 2]
        out = self.forward(torch.cat([half, half]), t, y)
        conditional, unconditional = out[:, :3].chunk(2)
        guided = unconditional + cfg_scale * (conditional - unconditional)
        return torch.cat([torch.cat([guided, guided]), out[:, 3:]], dim=1)


class SiT(DiT):
    """The same network as used by SiT: the variance channels, where present, are discarded.

    Source: arXiv 2401.08740. The time is the raw value in [0, 1]. The arguments, the state dict
    and ``forward_with_cfg`` are DiT's.
    """

    def forward(self, x, t, y, drop_mask=None):
        """Runs the network; as DiT.forward, but always returns [B, C, H, W]."""
        return super().forward(x, t, y, drop_mask)[:, : self.in_channels]


def randomise_(model, seed):
    """Fills every parameter except pos_embed with small normal values, in place.

    Args:
        model: A module.
        seed: Integer seed. The same seed gives the same values.

    Returns:
        The model.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.05 * values)
    return model
