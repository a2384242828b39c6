"""Twin of DiT^DH, the diffusion transformer with a wide head on the latents of an RAE.

Source: "Diffusion Transformers with Representation Autoencoders", arXiv 2510.11690. Written from
the project's extract of the authors' conventions and facts read in their source. The names in the
state dict are those of the released checkpoints.

The clock is not SiT's: t = 0 is data, t = 1 is noise, x_t = (1 - t) data + t noise, and the output
is the velocity noise - data. Times are shifted towards the noise, in training and in sampling; the
network sees the shifted time.
"""

import itertools

import torch
from torch import nn

from . import ddt
from ._numpy_io import numpy_io, to_tensor
from .ddt import RMSNorm, modulate
from .dit import LabelEmbedder, PatchEmbed, sincos_pos_embed
from .lightning_dit import Attention, RotaryEmbedding, SwiGLU

FOURIER_FREQUENCIES = 256
LAST_TIME = 1 - 1 / 1000  # the other end of the clock is 0


class FourierEmbedder(nn.Module):
    """Random Fourier features of the time, sines first, and a two-layer perceptron.

    The frequencies are drawn once and are never trained, so a checkpoint must bring them.

    Args:
        hidden_size: Features of the output.
    """

    def __init__(self, hidden_size):
        super().__init__()
        self.W = nn.Parameter(torch.randn(FOURIER_FREQUENCIES), requires_grad=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * FOURIER_FREQUENCIES, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, t):
        """Maps times [B] in [0, 1] to [B, D]."""
        angle = 2 * torch.pi * t.to(self.W.dtype)[:, None] * self.W[None, :]
        return self.mlp(torch.cat([torch.sin(angle), torch.cos(angle)], dim=1))


class Block(nn.Module):
    """LightningDiT's block, except that the condition may differ from token to token.

    adaLN has its own activation although the condition comes activated already.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
        mlp_ratio: Width of the plain perceptron that SwiGLU is as large as, over the hidden size.
    """

    def __init__(self, hidden_size, num_heads, mlp_ratio):
        super().__init__()
        self.norm1 = RMSNorm(hidden_size)
        self.attn = Attention(hidden_size, num_heads, qk_norm=False)
        self.norm2 = RMSNorm(hidden_size)
        self.mlp = SwiGLU(hidden_size, int(2 / 3 * int(hidden_size * mlp_ratio)))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x, c, rope):
        """Maps tokens [B, T, D] and the condition [B, 1 or T, D] to [B, T, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rope)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Last norm, modulation token by token, and projection to the latent's channels.

    Args:
        hidden_size: Features of a token.
        out_channels: Channels of the latent.
    """

    def __init__(self, hidden_size, out_channels):
        super().__init__()
        self.norm_final = RMSNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x, c):
        """Maps tokens and the condition, both [B, T, D], to [B, T, C]."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiTwDDTHead(nn.Module):
    """Diffusion transformer whose tokens condition a shallow, wide head, token by token.

    Source: arXiv 2510.11690, with the options of the released models: patches of one position,
    RMSNorm, SwiGLU, rotary positions in both parts, a fixed position table in the encoder only, no
    norm of queries and keys. The first ``depth[0]`` of the blocks are the encoder. There is no
    random label dropout inside.

    Args:
        input_size: Side of the latent, or its (height, width).
        in_channels: Channels of the latent.
        hidden_size: Features of a token in the encoder and in the head.
        depth: Number of blocks of the encoder and of the head.
        num_heads: Number of heads of the encoder and of the head.
        mlp_ratio: Width of the plain perceptron that SwiGLU is as large as, over the hidden size.
        num_classes: Number of classes; the label with this value is the null label.
    """

    def __init__(
        self,
        input_size=16,
        in_channels=768,
        hidden_size=(1152, 2048),
        depth=(28, 2),
        num_heads=(16, 16),
        mlp_ratio=4.0,
        num_classes=1000,
    ):
        super().__init__()
        self.encoder_depth = depth[0]
        self.grid = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        width, head_width = hidden_size
        self.x_embedder = PatchEmbed(1, in_channels, head_width)
        self.s_embedder = PatchEmbed(1, in_channels, width)
        same = width == head_width
        self.s_projector = nn.Identity() if same else nn.Linear(width, head_width)
        self.t_embedder = FourierEmbedder(width)
        self.y_embedder = LabelEmbedder(num_classes, width)
        table = sincos_pos_embed(width, self.grid)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.enc_feat_rope = RotaryEmbedding(self.grid, width // num_heads[0])
        self.dec_feat_rope = RotaryEmbedding(self.grid, head_width // num_heads[1])
        parts = [(width, num_heads[0])] * depth[0] + [(head_width, num_heads[1])] * depth[1]
        self.blocks = nn.ModuleList(Block(size, heads, mlp_ratio) for size, heads in parts)
        self.final_layer = FinalLayer(head_width, in_channels)
        self.initialise_()

    def initialise_(self):
        """Changes torch's default initial values where the paper's code does."""
        for embedder in (self.x_embedder, self.s_embedder):
            nn.init.xavier_uniform_(embedder.proj.weight.data.flatten(start_dim=1))
            nn.init.zeros_(embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        zeroed = [layer.adaLN_modulation[1] for layer in [*self.blocks, self.final_layer]]
        for linear in [*zeroed, self.final_layer.linear]:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def encode(self, x, t, y):
        """Returns the head's condition [B, T, head width]; arguments as in forward."""
        time = self.t_embedder(t)
        c = nn.functional.silu(time + self.y_embedder(y))[:, None, :]
        s = self.s_embedder(x) + self.pos_embed
        for block in self.blocks[: self.encoder_depth]:
            s = block(s, c, self.enc_feat_rope)
        return self.s_projector(nn.functional.silu(time[:, None, :] + s))

    def forward(self, x, t, y):
        """Runs the network.

        Args:
            x: Tensor [B, C, H, W].
            t: Tensor [B] in [0, 1], shifted already.
            y: Tensor [B], int64 labels.

        Returns:
            Velocity [B, C, H, W].
        """
        s = self.encode(x, t, y)
        tokens = self.x_embedder(x)
        for block in self.blocks[self.encoder_depth :]:
            tokens = block(tokens, s, self.dec_feat_rope)
        out = self.final_layer(tokens, s)
        return out.transpose(1, 2).reshape(len(x), -1, *self.grid)


def randomise_(model, seed):
    """Fills every parameter with normal values that make all parts matter, in place.

    As `ddt.randomise_`; the frequencies of the time are standard normal.

    Args:
        model: A DiTwDDTHead.
        seed: Integer seed. The same seed gives the same values.

    Returns:
        The model.
    """
    ddt.randomise_(model, seed)
    with torch.no_grad():
        model.t_embedder.W *= 20
    return model


def shift_times(t, shift):
    """Moves times [...] in [0, 1] towards 1 (noise); 0 and 1 stay, and so does all for shift 1."""
    return shift * t / (1 + (shift - 1) * t)


@numpy_io
def training_times(u, shift):
    """Shifted logit-normal times, truncated before the shift to [0, 0.999].

    Args:
        u: Tensor [B], uniform in [0, 1); the quantiles of the truncated distribution.
        shift: At least 1; in the paper the square root of (values in a latent / 4096).

    Returns:
        Tensor [B].
    """
    last = torch.tensor(LAST_TIME, dtype=u.dtype)
    quantile = torch.special.ndtr(torch.logit(last)) * u
    t = torch.sigmoid(torch.special.ndtri(quantile))
    return shift_times(t.clamp(torch.zeros_like(last), last), shift)


@numpy_io
def interpolate(x, noise, t):
    """Returns the noised latents and the velocity to predict, both [B, C, H, W]; t is [B]."""
    t = t.reshape(-1, 1, 1, 1)
    return (1 - t) * x + t * noise, noise - x


def ode_times(num_steps, shift, dtype=torch.float32):
    """Times of the sampler, from 1 downwards; the last one is above 0.

    Args:
        num_steps: Number of times, one more than the number of calls of the network.
        shift: As in training_times.
        dtype: Floating-point type of the computation (float32 in the paper's code).

    Returns:
        Tensor [num_steps].
    """
    return shift_times(1 - torch.linspace(0, LAST_TIME, num_steps, dtype=dtype), shift)


@numpy_io
def euler_sample(model_fn, noise, times):
    """Integrates the velocity from the noise with Euler's method.

    Args:
        model_fn: Function of latents [B, C, H, W] and times [B], both tensors, that returns the
            velocity.
        noise: Tensor [B, C, H, W], the state at the first time.
        times: Tensor [N], decreasing. There are N - 1 steps, and none to the time 0.

    Returns:
        Tensor [B, C, H, W], the state at the last time.
    """
    x = noise
    for now, later in itertools.pairwise(times.to(noise.dtype)):
        x = x + (later - now) * to_tensor(model_fn(x, now.expand(len(x))))
    return x


@numpy_io
def guide(main, weak, t, scale, interval=(0.0, 1.0)):
    """Extrapolates from a weak prediction through the main one, on all channels.

    For classifier-free guidance the weak prediction is the network's own without a label, for
    autoguidance that of a weaker network with the same label.

    Args:
        main: Tensor [B, C, H, W].
        weak: Tensor [B, C, H, W].
        t: Tensor [B].
        scale: 1 gives the main prediction.
        interval: First and last time with guidance, both included.

    Returns:
        Tensor [B, C, H, W]: weak + scale * (main - weak), or main outside the interval.
    """
    inside = ((t >= interval[0]) & (t <= interval[1])).reshape(-1, 1, 1, 1)
    return torch.where(inside, weak + scale * (main - weak), main)


def cfg_fn(model, y, scale, interval=(0.0, 1.0)):
    """Classifier-free guidance as a function of latents and times; arguments as in guide."""
    null = torch.full_like(y, model.y_embedder.num_classes)
    return lambda x, t: guide(model(x, t, y), model(x, t, null), t, scale, interval)


def autoguidance_fn(model, weak_model, y, scale, interval=(0.0, 1.0)):
    """Autoguidance as a function of latents and times; arguments as in guide."""
    return lambda x, t: guide(model(x, t, y), weak_model(x, t, y), t, scale, interval)
