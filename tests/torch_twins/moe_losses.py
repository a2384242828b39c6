"""Auxiliary losses of DiT-MoE and ProMoE, as plain functions of one layer's routing.

Sources: DiT-MoE, arXiv 2407.11633; ProMoE, arXiv 2510.24711. Written from the project's extract of
the authors' conventions (DiT-MoE section 2, ProMoE sections 4 and 5).

In the authors' code these losses have the gradient one whatever the scale of the other loss, and
are absent from the logged loss: the total loss is the diffusion loss plus the sum over layers.
No gradient flows through the choice of experts. All means are over the batch given, which in the
authors' code is that of one GPU.
"""

import torch
from torch import nn


def expert_balance_loss(probabilities, indices, alpha=0.01):
    """Balance loss over all tokens of the batch (the authors' setting).

    Args:
        probabilities: Tensor [B, T, E], the router's softmax.
        indices: Tensor [B, T, K], int64; the chosen experts.
        alpha: Weight of the loss.

    Returns:
        Scalar: alpha times the sum over experts of the mean probability times the share of the
        choices, relative to an even share. It is alpha where choices are even.
    """
    return sequence_balance_loss(
        probabilities.flatten(end_dim=1)[None], indices.flatten(end_dim=1)[None], alpha
    )


def sequence_balance_loss(probabilities, indices, alpha=0.01):
    """Balance loss within each sample, averaged over the samples; arguments as above."""
    experts = probabilities.shape[-1]
    chosen = nn.functional.one_hot(indices.flatten(start_dim=1), experts)  # [B, T * K, E]
    load = experts * chosen.to(probabilities.dtype).mean(dim=1)
    return alpha * (probabilities.mean(dim=1) * load).sum(dim=1).mean()


def token_choice_contrastive_loss(prototypes, tokens, indices, temperature=0.07):
    """Routing contrastive loss where tokens choose experts.

    Prototypes without a token take no part. The means of tokens are not detached.

    Args:
        prototypes: Tensor [E, D].
        tokens: Tensor [N, D], the router's inputs of all conditional samples, not normalised.
        indices: Tensor [N, K], int64; the chosen experts, each below E.
        temperature: Divisor of the cosines (0.07 in the authors' configurations; their class has
            0.1 as the default).

    Returns:
        Scalar; zero, without a gradient, where fewer than two prototypes have tokens.
    """
    members = [(indices == number).any(dim=1) for number in range(len(prototypes))]
    valid = [number for number, mask in enumerate(members) if mask.any()]
    if len(valid) < 2:
        return prototypes.new_zeros(())
    means = torch.stack([tokens[members[number]].mean(dim=0) for number in valid])
    return _match_loss(prototypes[valid], means[None], temperature)


def expert_choice_contrastive_loss(prototypes, tokens, indices, temperature=0.07):
    """Routing contrastive loss where experts choose tokens: a matching within each sample.

    Args:
        prototypes: Tensor [E, D].
        tokens: Tensor [B, T, D], the router's inputs of the conditional samples, not normalised.
        indices: Tensor [B, E, k], int64; the chosen tokens of each sample.
        temperature: As above.

    Returns:
        Scalar, the mean over samples and experts; zero, without a gradient, where there is no
        conditional sample or a single expert.
    """
    if len(tokens) == 0 or len(prototypes) < 2:
        return prototypes.new_zeros(())
    samples = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    return _match_loss(prototypes, tokens[samples, indices].mean(dim=2), temperature)


def _match_loss(prototypes, means, temperature):
    """Cross entropy of finding, for each prototype [V, D], its own among the means [B, V, D]."""
    prototypes = nn.functional.normalize(prototypes, dim=-1)
    logits = prototypes @ nn.functional.normalize(means, dim=-1).transpose(1, 2) / temperature
    target = torch.arange(len(prototypes), device=means.device).repeat(len(means))
    return nn.functional.cross_entropy(logits.flatten(end_dim=1), target)
