"""Twin of ProMoE, a DiT with experts that tokens find by prototypes.

Source: "Routing Matters in MoE", arXiv 2510.24711. Written from the project's extract of the
authors' conventions (ProMoE sections 1 to 5; DiT for the rest); what it left open was looked up in
the authors' code. The names in the state dict are those of the authors' code, without the prefix
of the trainer.

Peculiarities:
  - Blocks with an odd index have a mixture, the others DiT's perceptron; both are called `mlp`.
  - Samples with the null label skip the router: all their tokens go to one expert of their own,
    the last in the list, with weight one. The label is looked at after label dropout. The authors
    compare it with the constant 1000, this twin with num_classes.
  - The score is the cosine between the token (after adaLN) and a prototype. It weighs the expert
    as it is: no temperature, no softmax (unless asked for), no renormalisation; it may be negative,
    and experts are chosen by their value, not by their magnitude.
  - Experts are perceptrons with biases and the tanh form of GELU; the shared one is added with
    weight one to every token, those with the null label included.
  - Routed, null and shared experts have an inner width of 2 D, so that a token's routed expert and
    the shared one together are as large as DiT's perceptron.
  - Where experts choose tokens, each takes max(1, min(int(T / E * top_k), T)) tokens of each
    sample; some tokens are taken by several experts, some by none. Softmax scores are then over
    the tokens, not over the experts.
  - Norms of queries and keys (off in the released models) have LayerNorm's own epsilon, 1e-5.
  - The clock is t = 0 for data and t = 1 for noise; the network sees 1000 t, not rounded. Only the
    first half of the channels is used, and guidance acts on all of them:
    `dit_moe.guided_velocity`. The authors' code also has guidance on three channels, unused and
    broken: it takes the first sample for the batch. The method that this class inherits is DiT's.

Left out: the balance loss (weight 0 in the authors' configurations), models without a null expert,
and automatic mixed precision.

Unverified: the released files themselves were not opened, only the code that loads them was read.
"""

from typing import NamedTuple

import torch
from torch import nn

from . import dit
from .dit_moe import apply_experts, attend, initialise_blocks_
from .moe_losses import expert_choice_contrastive_loss, token_choice_contrastive_loss

SIZES = {
    name: dict(zip(("depth", "hidden_size", "num_heads"), values))
    for name, values in {
        "S": (12, 384, 6),
        "B": (12, 768, 12),
        "M": (16, 960, 16),
        "L": (24, 1024, 16),
        "XL": (28, 1152, 16),
    }.items()
}


class Routing(NamedTuple):
    """What the router of one layer saw and chose.

    Attributes:
        tokens: Tensor [B, T, D], the input of the mixture.
        similarity: Tensor [B, T, E], cosines between tokens and prototypes (of all samples).
        conditional: Bool tensor [B], false where a sample has the null label.
        indices: Tensor of int64. Token choice: the chosen experts [B, T, K], the best first; E,
            the null expert, in samples with the null label. Expert choice: the chosen tokens
            [B, E, k], the best first; -1 in samples with the null label.
        weights: Tensor of the shape of indices. In samples with the null label: one, then zeros,
            for token choice; zeros for expert choice.
    """

    tokens: torch.Tensor
    similarity: torch.Tensor
    conditional: torch.Tensor
    indices: torch.Tensor
    weights: torch.Tensor


class Attention(nn.Module):
    """Multi-head self-attention, with normed queries and keys where asked for.

    Args:
        hidden_size: Features of a token.
        num_heads: Number of heads.
        qk_norm: Whether queries and keys are normed, head by head.
    """

    def __init__(self, hidden_size, num_heads, qk_norm):
        super().__init__()
        self.num_heads = num_heads
        head_dim = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = nn.LayerNorm(head_dim, eps=1e-5) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=1e-5) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x):
        """Maps [B, T, D] to [B, T, D]."""
        return self.proj(attend(self.qkv(x), self.num_heads, self.q_norm, self.k_norm))


class Expert(nn.Module):
    """Two-layer perceptron with the tanh form of GELU.

    Args:
        hidden_size: Features of a token.
        expert_size: Features of the layer between.
    """

    def __init__(self, hidden_size, expert_size):
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, expert_size)
        self.down_proj = nn.Linear(expert_size, hidden_size)

    def forward(self, x):
        """Maps [..., D] to [..., D]."""
        return self.down_proj(nn.functional.gelu(self.up_proj(x), approximate="tanh"))


ACTIVATIONS = {
    "identity": lambda scores: scores,
    "softmax": lambda scores: torch.softmax(scores, dim=-1),
    "sigmoid": torch.sigmoid,
}


class SparseMoe(nn.Module):
    """Mixture of routed experts, the null expert and the shared expert.

    Args:
        hidden_size: Features of a token.
        expert_size: Inner features of the routed experts and of the null expert.
        shared_size: Inner features of the shared expert; 0 for none.
        num_experts: Number E of routed experts.
        top_k: Number of experts per token (expert choice: on average).
        activation: What makes scores of cosines: "identity", "softmax" or "sigmoid".
        expert_choice: Whether experts choose tokens, rather than tokens experts.
    """

    def __init__(
        self, hidden_size, expert_size, shared_size, num_experts, top_k, activation, expert_choice
    ):
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.activation = ACTIVATIONS[activation]
        self.expert_choice = expert_choice
        self.cluster_centers = nn.Parameter(torch.empty(num_experts, hidden_size))
        nn.init.normal_(self.cluster_centers, std=0.02)
        self.experts = nn.ModuleList(
            Expert(hidden_size, expert_size) for _ in range(num_experts + 1)
        )
        self.shared_expert = Expert(hidden_size, shared_size) if shared_size else None

    def similarity(self, x):
        """Maps tokens [B, T, D] to cosines [B, T, E]."""
        centers = nn.functional.normalize(self.cluster_centers, dim=-1)
        return nn.functional.normalize(x, dim=-1) @ centers.T

    def choose_experts(self, similarity, conditional, forced=None):
        """Returns indices and weights [B, T, K] of the experts that each token chooses."""
        scores = self.activation(similarity[conditional])
        chosen = scores.topk(self.top_k).indices if forced is None else forced[conditional]
        shape = (*similarity.shape[:2], chosen.shape[-1])
        indices = chosen.new_full(shape, self.num_experts)
        weights = scores.new_zeros(shape)
        weights[..., 0] = 1
        indices[conditional] = chosen
        weights[conditional] = scores.gather(-1, chosen)
        return indices, weights

    def choose_tokens(self, similarity, conditional, forced=None):
        """Returns indices and weights [B, E, k] of the tokens that each expert chooses."""
        batch, tokens, experts = similarity.shape
        scores = self.activation(similarity[conditional].transpose(1, 2))
        count = max(1, min(int(tokens / experts * self.top_k), tokens))
        chosen = scores.topk(count).indices if forced is None else forced[conditional]
        shape = (batch, experts, chosen.shape[-1])
        indices = chosen.new_full(shape, -1)
        weights = scores.new_zeros(shape)
        indices[conditional] = chosen
        weights[conditional] = scores.gather(-1, chosen)
        return indices, weights

    def apply_to_chosen(self, x, indices, weights):
        """Applies each routed expert to the tokens it chose: [B, T, D] to [B, T, D]."""
        total = torch.zeros_like(x)
        for number in range(self.num_experts):
            place = indices[:, number, :, None].expand(-1, -1, x.shape[-1])
            result = self.experts[number](x.gather(1, place))
            total = total.scatter_add(1, place, result * weights[:, number, :, None])
        return total

    def forward(self, x, conditional, indices=None):
        """Runs the mixture.

        Args:
            x: Tensor [B, T, D].
            conditional: Bool tensor [B], false where a sample has the null label.
            indices: Optional tensor that takes the place of the choice; as in `Routing`.

        Returns:
            Tensor [B, T, D], and the `Routing`.
        """
        similarity = self.similarity(x)
        choose = self.choose_tokens if self.expert_choice else self.choose_experts
        routing = Routing(x, similarity, conditional, *choose(similarity, conditional, indices))
        if self.expert_choice:
            y = torch.empty_like(x)
            chosen, weights = routing.indices[conditional], routing.weights[conditional]
            y[conditional] = self.apply_to_chosen(x[conditional], chosen, weights)
            y[~conditional] = self.experts[-1](x[~conditional])
        else:
            y = apply_experts(self.experts, x, routing.indices, routing.weights)
        if self.shared_expert is not None:
            y = y + self.shared_expert(x)
        return y, routing


class Block(nn.Module):
    """Transformer block with adaLN-Zero conditioning.

    Args:
        hidden_size: Features of a token.
        attention: Self-attention module.
        mlp: A `SparseMoe`, or any perceptron.
    """

    def __init__(self, hidden_size, attention, mlp):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.attn = attention
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.mlp = mlp
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x, c, conditional, indices=None):
        """Maps tokens [B, T, D] and the condition [B, D] to [B, T, D] and the routing, or None."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None, :] * self.attn(dit.modulate(self.norm1(x), shift1, scale1))
        u = dit.modulate(self.norm2(x), shift2, scale2)
        if isinstance(self.mlp, SparseMoe):
            y, routing = self.mlp(u, conditional, indices)
        else:
            y, routing = self.mlp(u), None
        return x + gate2[:, None, :] * y, routing


class ProMoE(dit.DiT):
    """DiT with prototype-routed experts in every other block.

    Source: arXiv 2510.24711. `SIZES` has the arguments of the named models. Random weights come
    from `dit_moe.randomise_`, guided velocities from `dit_moe.guided_velocity`.

    Args:
        input_size: Side of the (latent) image, or its (height, width).
        patch_size: Side of a patch.
        in_channels: Channels of the image.
        hidden_size: Features of a token.
        depth: Number of blocks.
        num_heads: Number of heads.
        mlp_ratio: Width of the perceptrons of blocks without experts over the hidden size.
        num_classes: Number of classes; the label with this value is the null label.
        learn_sigma: Whether the output has a second set of channels (in all released models).
        num_experts: Number of routed experts, the null expert not counted.
        expert_size: Inner features of routed and null experts, by default twice the hidden size.
        shared_size: Inner features of the shared expert, as above; 0 for none.
        top_k: Number of experts per token (expert choice: on average).
        activation: What makes scores of cosines: "identity", "softmax" or "sigmoid".
        expert_choice: Whether experts choose tokens, rather than tokens experts.
        interleave: Whether only blocks with an odd index have experts, rather than all.
        qk_norm: Whether queries and keys are normed.
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
        num_experts=12,
        expert_size=None,
        shared_size=None,
        top_k=1,
        activation="identity",
        expert_choice=False,
        interleave=True,
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
            learn_sigma=learn_sigma,
        )
        sizes = [2 * hidden_size if size is None else size for size in (expert_size, shared_size)]
        moe = (hidden_size, *sizes, num_experts, top_k, activation, expert_choice)
        dense = (hidden_size, int(mlp_ratio * hidden_size))
        self.blocks = nn.ModuleList(
            Block(
                hidden_size,
                Attention(hidden_size, num_heads, qk_norm),
                dit.Mlp(*dense) if interleave and number % 2 == 0 else SparseMoe(*moe),
            )
            for number in range(depth)
        )
        initialise_blocks_(self.blocks)

    def forward(self, x, t, y, drop_mask=None, routes=None):
        """Runs the network; as `forward_with_routing`, but returns only the output."""
        return self.forward_with_routing(x, t, y, drop_mask, routes)[0]

    def forward_with_routing(self, x, t, y, drop_mask=None, routes=None):
        """Runs the network.

        Args:
            x: Tensor [B, C, H, W].
            t: Tensor [B], the time times 1000.
            y: Tensor [B], int64 labels.
            drop_mask: Optional bool tensor [B]; labels where it is true become the null label.
            routes: Optional dict from the number of a block to indices that take the place of the
                router's choice (shapes as in `Routing`; those of samples with the null label are
                not looked at). Their weights are still the scores.

        Returns:
            Tensor [B, 2C, H, W], or [B, C, H, W] without learn_sigma, and a dict from the number
            of each block with experts to its `Routing`.
        """
        null = self.y_embedder.num_classes
        labels = y if drop_mask is None else torch.where(drop_mask, null, y)
        tokens = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(labels)
        routing = {}
        for number, block in enumerate(self.blocks):
            indices = (routes or {}).get(number)
            tokens, layer = block(tokens, c, labels != null, indices)
            if layer is not None:
                routing[number] = layer
        return self.unpatchify(self.final_layer(tokens, c)), routing

    def contrastive_losses(self, routing, temperature=0.07):
        """Returns a dict from the number of a block to its routing contrastive loss, a scalar.

        Args:
            routing: The dict that `forward_with_routing` returns.
            temperature: Divisor of the cosines.
        """
        losses = {}
        for number, layer in routing.items():
            moe = self.blocks[number].mlp
            tokens, indices = layer.tokens[layer.conditional], layer.indices[layer.conditional]
            loss = expert_choice_contrastive_loss
            if not moe.expert_choice:
                loss = token_choice_contrastive_loss
                tokens, indices = tokens.flatten(end_dim=1), indices.flatten(end_dim=1)
            losses[number] = loss(moe.cluster_centers, tokens, indices, temperature)
        return losses
