"""Twin of DiT-MoE, a DiT whose perceptrons are mixtures of experts.

Source: DiT-MoE, arXiv 2407.11633. Written from the project's extract of the authors' conventions
(DiT-MoE sections 1 to 3 and 5; DiT for the rest); what it left open was looked up in the authors'
code. The names in the state dict are those of the authors' code.

Peculiarities:
  - Every block has a mixture; it is called `moe`, not `mlp`.
  - The gate is a bare matrix [E, D] without bias. Its softmax probabilities weigh the chosen
    experts as they are: they are not renormalised, and their sum is below one.
  - An expert is SwiGLU without biases; its inner width is 4 D, not two thirds of it.
  - The shared experts are one SwiGLU of inner width 2 D (number of shared experts times D), added
    with weight one to every token.
  - No expert has a capacity and no token is dropped, so samples do not depend on each other.
  - There are two layouts of attention. S and B have timm's (`qkv`, `proj`). XL and G have flash
    attention's (`Wqkv`, `out_proj`) with an affine LayerNorm of queries and keys for each head.
  - The initial values of the gate are Kaiming's, those of all other linear layers Xavier's.
  - DDPM models (S, B) see the step 0..999 and guide three channels (`forward_with_cfg`).
    Rectified-flow models (XL, G) see the raw time in [0, 1], with 0 the data and 1 the noise,
    discard the second half of the channels and guide all others (`guided_velocity`).

Left out: the sum over two slices of the experts' inner width (S, B), which changes only rounding,
and half precision. The authors run XL and G in float16 (converted weights, autocast, and a cast of
normed queries and keys); how far that takes their outputs from this twin's was not measured.

Unverified: the released files themselves were not opened, only the code that loads them was read.
None of L/2-8E2A and B/2-16E2A was released; L's attention is timm's in the authors' sampling
script, flash attention's in their larger trainer.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from . import dit
from .moe_losses import expert_balance_loss, sequence_balance_loss

ARGUMENTS = ("depth", "hidden_size", "num_heads", "num_experts", "attention")
SIZES = {
    name: dict(zip(ARGUMENTS, values))
    for name, values in {
        "S/2-8E2A": (12, 384, 6, 8, "timm"),
        "S/2-16E2A": (12, 384, 6, 16, "timm"),
        "B/2-8E2A": (12, 768, 12, 8, "timm"),
        "B/2-16E2A": (12, 768, 12, 16, "timm"),
        "L/2-8E2A": (24, 1024, 16, 8, "timm"),
        "XL/2-8E2A": (28, 1152, 16, 8, "flash"),
        "G/2-16E2A": (40, 1408, 16, 16, "flash"),
    }.items()
}


class Routing(NamedTuple):
    """What the gate of one layer saw and chose.

    Attributes:
        tokens: Tensor [B, T, D], the input of the mixture.
        probabilities: Tensor [B, T, E], the softmax over all experts.
        indices: Tensor [B, T, K], int64; the chosen experts, the most probable first.
        weights: Tensor [B, T, K], the chosen experts' probabilities.
    """

    tokens: torch.Tensor
    probabilities: torch.Tensor
    indices: torch.Tensor
    weights: torch.Tensor


def attend(qkv, num_heads, q_norm, k_norm):
    """Multi-head attention of projected tokens [B, T, 3 * D]; returns [B, T, D].

    The features are in the order (query, key or value; head; feature). The norms act on each head.
    """
    batch, tokens, width = qkv.shape
    q, k, v = qkv.reshape(batch, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = q_norm(q), k_norm(k)
    weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
    return (weights @ v).transpose(1, 2).reshape(batch, tokens, width // 3)


def apply_experts(experts, x, indices, weights):
    """Sends each token through the experts it chose and sums the weighted results.

    Args:
        experts: Modules that map [N, D] to [N, D].
        x: Tensor [B, T, D].
        indices: Tensor [B, T, K], int64; the chosen experts.
        weights: Tensor [B, T, K].

    Returns:
        Tensor [B, T, D].
    """
    flat = x.flatten(end_dim=1)
    indices, weights = indices.flatten(end_dim=1), weights.flatten(end_dim=1)
    total = torch.zeros_like(flat)
    for number, expert in enumerate(experts):
        token, slot = torch.where(indices == number)
        weighted = expert(flat[token]) * weights[token, slot, None]
        total = total.index_add(0, token, weighted)
    return total.reshape(x.shape)


def initialise_blocks_(blocks):
    """Gives linear layers Xavier's distribution and zero biases; adaLN starts at zero."""
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in blocks:
        nn.init.zeros_(block.adaLN_modulation[1].weight)


class FlashAttention(nn.Module):
    """Self-attention with flash attention's names and normed queries and keys.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
    """

    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.Wqkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = nn.LayerNorm(hidden_size // num_heads, eps=1e-6)
        self.k_norm = nn.LayerNorm(hidden_size // num_heads, eps=1e-6)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x):
        """Maps [B, T, D] to [B, T, D]."""
        return self.out_proj(attend(self.Wqkv(x), self.num_heads, self.q_norm, self.k_norm))


ATTENTION = {"timm": dit.Attention, "flash": FlashAttention}


class Expert(nn.Module):
    """Gated perceptron without biases.

    Args:
        hidden_size: Features of a token.
        expert_size: Features of the layer between.
    """

    def __init__(self, hidden_size, expert_size):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, expert_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, expert_size, bias=False)
        self.down_proj = nn.Linear(expert_size, hidden_size, bias=False)

    def forward(self, x):
        """Maps [..., D] to [..., D]."""
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """Router.

    Args:
        hidden_size: Features of a token.
        num_experts: Number of experts to choose from.
        top_k: Number of experts that a token chooses.
    """

    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x, indices=None):
        """Routes tokens [B, T, D]; indices [B, T, K] replace the choice, not its weights."""
        probabilities = torch.softmax(x @ self.weight.T, dim=-1)
        if indices is None:
            indices = probabilities.topk(self.top_k, dim=-1).indices
        return Routing(x, probabilities, indices, probabilities.gather(-1, indices))


class SparseMoe(nn.Module):
    """Mixture of routed experts, plus the shared ones.

    Args:
        hidden_size: Features of a token.
        expert_size: Inner features of a routed expert.
        num_experts: Number of routed experts.
        top_k: Number of routed experts that a token chooses.
        shared_experts: Inner features of the shared expert over the hidden size; 0 for none.
    """

    def __init__(self, hidden_size, expert_size, num_experts, top_k, shared_experts):
        super().__init__()
        self.gate = Gate(hidden_size, num_experts, top_k)
        self.experts = nn.ModuleList(Expert(hidden_size, expert_size) for _ in range(num_experts))
        self.shared_experts = None
        if shared_experts:
            self.shared_experts = Expert(hidden_size, shared_experts * hidden_size)

    def forward(self, x, indices=None):
        """Maps [B, T, D] to [B, T, D] and the routing; indices as in `Gate.forward`."""
        routing = self.gate(x, indices)
        y = apply_experts(self.experts, x, routing.indices, routing.weights)
        if self.shared_experts is not None:
            y = y + self.shared_experts(x)
        return y, routing


class Block(nn.Module):
    """Transformer block with adaLN-Zero conditioning and a mixture of experts.

    Args:
        hidden_size: Features of a token.
        attention: Self-attention module.
        moe: Mixture of experts.
    """

    def __init__(self, hidden_size, attention, moe):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.attn = attention
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.moe = moe
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x, c, indices=None):
        """Maps tokens [B, T, D] and the condition [B, D] to [B, T, D] and the routing."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None, :] * self.attn(dit.modulate(self.norm1(x), shift1, scale1))
        y, routing = self.moe(dit.modulate(self.norm2(x), shift2, scale2), indices)
        return x + gate2[:, None, :] * y, routing


class DiTMoE(dit.DiT):
    """DiT with a mixture of experts in every block.

    Source: arXiv 2407.11633. `SIZES` has the arguments of the named models. Random weights come
    from `randomise_`.

    Args:
        input_size: Side of the (latent) image, or its (height, width).
        patch_size: Side of a patch.
        in_channels: Channels of the image.
        hidden_size: Features of a token.
        depth: Number of blocks.
        num_heads: Number of heads.
        mlp_ratio: Inner features of a routed expert over the hidden size.
        num_classes: Number of classes; the label with this value is the null label.
        learn_sigma: Whether the output has a second set of channels (in all released models).
        num_experts: Number of routed experts.
        top_k: Number of routed experts that a token chooses.
        shared_experts: Inner features of the shared expert over the hidden size; 0 for none.
        attention: "timm" or "flash", the layout of attention.
    """

    def __init__(
        self,
        input_size,
        patch_size,
        in_channels,
        hidden_size,
        depth,
        num_heads,
        mlp_ratio=4,
        num_classes=1000,
        learn_sigma=True,
        num_experts=8,
        top_k=2,
        shared_experts=2,
        attention="timm",
    ):
        super().__init__(
            input_size,
            patch_size,
            in_channels,
            hidden_size,
            depth=0,
            num_heads=num_heads,
            num_classes=num_classes,
            learn_sigma=learn_sigma,
        )
        moe = (hidden_size, int(mlp_ratio * hidden_size), num_experts, top_k, shared_experts)
        self.blocks = nn.ModuleList(
            Block(hidden_size, ATTENTION[attention](hidden_size, num_heads), SparseMoe(*moe))
            for _ in range(depth)
        )
        initialise_blocks_(self.blocks)

    def forward(self, x, t, y, drop_mask=None, routes=None):
        """Runs the network; as `forward_with_routing`, but returns only the output."""
        return self.forward_with_routing(x, t, y, drop_mask, routes)[0]

    def forward_with_routing(self, x, t, y, drop_mask=None, routes=None):
        """Runs the network.

        Args:
            x: Tensor [B, C, H, W].
            t: Tensor [B]: 0..999 in DDPM models, [0, 1] in rectified-flow models.
            y: Tensor [B], int64 labels.
            drop_mask: Optional bool tensor [B]; labels where it is true become the null label.
            routes: Optional dict from the number of a block to the experts [B, T, K] that its
                tokens shall choose. Their weights are still the gate's probabilities.

        Returns:
            Tensor [B, 2C, H, W], or [B, C, H, W] without learn_sigma, and a dict from the number
            of each block to its `Routing`.
        """
        tokens = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y, drop_mask)
        routing = {}
        for number, block in enumerate(self.blocks):
            tokens, routing[number] = block(tokens, c, (routes or {}).get(number))
        return self.unpatchify(self.final_layer(tokens, c)), routing


def balance_losses(routing, alpha=0.01, per_sequence=False):
    """Returns a dict from the number of a block to its balance loss, a scalar.

    Args:
        routing: The dict that `DiTMoE.forward_with_routing` returns.
        alpha: Weight of the losses.
        per_sequence: Whether experts are balanced within each sample (not so in released models).
    """
    loss = sequence_balance_loss if per_sequence else expert_balance_loss
    return {
        number: loss(layer.probabilities, layer.indices, alpha) for number, layer in routing.items()
    }


def guided_velocity(model, x, t, y, cfg_scale):
    """Velocity of a rectified-flow model with classifier-free guidance on all channels.

    The model runs once with the labels and once with the null label, as in the authors' samplers.

    Args:
        model: A `DiTMoE` or a `ProMoE`.
        x: Tensor [B, C, H, W].
        t: Tensor [B], the time as the model sees it.
        y: Tensor [B], int64 labels.
        cfg_scale: Guidance scale s in u + s * (c - u).

    Returns:
        Velocity noise - data, [B, C, H, W].
    """
    null = torch.full_like(y, model.y_embedder.num_classes)
    conditional, unconditional = model(x, t, y), model(x, t, null)
    guided = unconditional + cfg_scale * (conditional - unconditional)
    return guided[:, : model.in_channels]


def randomise_(model, seed):
    """Fills every parameter with normal values such that experts show in the output, in place.

    Those of norms are around one. Experts, gates and the biases of adaLN get larger ones than the
    others. The position table stays as it is.

    Args:
        model: A `DiTMoE` or a `ProMoE`.
        seed: Integer seed. The same seed gives the same values.

    Returns:
        The model.
    """
    dit.randomise_(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_norm.weight"):
                parameter += 1
            elif ".adaLN_modulation.1.bias" in name:
                parameter *= 10
            elif any(part in name for part in (".gate.", ".experts.", ".shared_expert")):
                parameter *= 4
    return model
