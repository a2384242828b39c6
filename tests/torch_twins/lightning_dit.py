"""Twin of LightningDiT.

Source: "Reconstruction vs. Generation", arXiv 2501.01423. Written from an extract of the authors'
conventions. The names in the state dict are those of the released checkpoints.

LightningDiT's clock is SiT's: t = 0 is noise, t = 1 is data, x_t = t data + (1 - t) noise, and the
output is the velocity data - noise.
"""

import math

import numpy as np
import torch
from torch import nn

from .ddt import RMSNorm, rotate_pairs
from .dit import DiT, FinalLayer, modulate

ROPE_THETA = 10000.0


class RotaryEmbedding(nn.Module):
    """Rotary position embedding: half of the features for the row, half for the column.

    Args:
        grid: Number of patches (rows, columns).
        head_dim: Features of a head, a multiple of 4.
    """

    def __init__(self, grid, head_dim):
        super().__init__()
        half = head_dim // 2
        frequency = ROPE_THETA ** (-2.0 * np.arange(half // 2) / half)
        row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
        angles = np.concatenate([np.outer(row, frequency), np.outer(column, frequency)], axis=1)
        angles = torch.from_numpy(angles.repeat(2, axis=1))  # both features of a pair
        self.register_buffer("freqs_cos", angles.cos().float())
        self.register_buffer("freqs_sin", angles.sin().float())

    def forward(self, x):
        """Maps queries or keys [B, heads, T, d] to the same shape."""
        return rotate_pairs(x, self.freqs_cos[:, ::2], self.freqs_sin[:, ::2])


class Attention(nn.Module):
    """Multi-head self-attention with rotated queries and keys.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
        qk_norm: Whether queries and keys are normed, head by head, before they are rotated.
    """

    def __init__(self, hidden_size, num_heads, qk_norm):
        super().__init__()
        self.num_heads = num_heads
        head_dim = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x, rope):
        """Maps [B, T, D] to [B, T, D]; rope rotates queries and keys."""
        batch, tokens, dim = x.shape
        head_dim = dim // self.num_heads
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rope(self.q_norm(q)), rope(self.k_norm(k))
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(head_dim), dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class SwiGLU(nn.Module):
    """Gated perceptron with biases; one layer makes the gate (first half) and the values.

    Args:
        hidden_size: Features of a token.
        mlp_size: Features of the layer between.
    """

    def __init__(self, hidden_size, mlp_size):
        super().__init__()
        self.w12 = nn.Linear(hidden_size, 2 * mlp_size)
        self.w3 = nn.Linear(mlp_size, hidden_size)

    def forward(self, x):
        """Maps [B, T, D] to [B, T, D]."""
        gate, values = self.w12(x).chunk(2, dim=-1)
        return self.w3(nn.functional.silu(gate) * values)


class Block(nn.Module):
    """Transformer block with RMSNorm, rotary positions, SwiGLU and adaLN-Zero.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
        mlp_ratio: Width of the plain perceptron that SwiGLU is as large as, over the hidden size.
        qk_norm: Whether attention norms queries and keys.
    """

    def __init__(self, hidden_size, num_heads, mlp_ratio, qk_norm):
        super().__init__()
        self.norm1 = RMSNorm(hidden_size)
        self.attn = Attention(hidden_size, num_heads, qk_norm)
        self.norm2 = RMSNorm(hidden_size)
        self.mlp = SwiGLU(hidden_size, int(2 / 3 * int(hidden_size * mlp_ratio)))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x, c, rope):
        """Maps tokens [B, T, D] and the condition [B, D] to [B, T, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None, :] * self.attn(modulate(self.norm1(x), shift1, scale1), rope)
        return x + gate2[:, None, :] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class LightningDiT(DiT):
    """DiT with RMSNorm, rotary positions (beside DiT's position table) and SwiGLU.

    Source: arXiv 2501.01423, with the options of the released XL/1 models: adaLN has shifts, and
    there is no second set of output channels.

    Args:
        input_size: Side of the (latent) image, or its (height, width).
        patch_size: Side of a patch.
        in_channels: Channels of the image.
        hidden_size: Features of a token.
        depth: Number of blocks.
        num_heads: Number of heads.
        mlp_ratio: Width of the plain perceptron that SwiGLU is as large as, over the hidden size.
        num_classes: Number of classes; the label with this value is the null label.
        qk_norm: Whether queries and keys are normed (not in the released models).
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
        qk_norm=False,
    ):
        super().__init__(
            input_size,
            patch_size,
            in_channels,
            hidden_size,
            depth=0,
            num_heads=num_heads,
            num_classes=num_classes,
            learn_sigma=False,
        )
        self.feat_rope = RotaryEmbedding(self.grid, hidden_size // num_heads)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_ratio, qk_norm) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.final_layer.norm_final = RMSNorm(hidden_size)
        self.initialise_()

    def forward(self, x, t, y, drop_mask=None):
        """Runs the network.

        Args:
            x: Tensor [B, C, H, W].
            t: Tensor [B] in [0, 1].
            y: Tensor [B], int64 labels.
            drop_mask: Optional bool tensor [B]; labels where it is true become the null label.

        Returns:
            Velocity [B, C, H, W].
        """
        tokens = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y, drop_mask)
        for block in self.blocks:
            tokens = block(tokens, c, self.feat_rope)
        return self.unpatchify(self.final_layer(tokens, c))

    def forward_with_cfg(self, x, t, y, cfg_scale, interval_start=0.0):
        """Runs the network with guidance on the first three channels only, in later steps only.

        Args:
            x: Tensor [2n, C, H, W]; only the first n are used.
            t: Tensor [2n], all equal.
            y: Tensor [2n]; first n labels, then n null labels.
            cfg_scale: Guidance scale s in u + s * (c - u).
            interval_start: Times below this one take the conditional output instead.

        Returns:
            Tensor [2n, C, H, W]. Channels 0..2 of both halves hold the guided output; the others
            hold each half's own.
        """
        return super().forward_with_cfg(x, t, y, 1.0 if t[0] < interval_start else cfg_scale)
