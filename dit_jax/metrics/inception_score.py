"""The Inception Score: how sure a classifier is of each image, and how various over all."""

import numpy as np

from dit_jax.metrics.checks import check_features


def inception_score(logits: np.ndarray, split_size: int = 5000) -> tuple[float, float]:
    """exp(E KL(p(y|x) || p(y))) over consecutive splits, in float64 (arXiv 1606.03498).

    ADM's evaluator gives the mean over splits of 5,000, the last of which may be smaller. The
    published protocol's 50,000 samples make the 10 splits of the paper and of torch-fidelity, which
    shuffles samples before; ADM does not. Samples sorted by class score too low, as few classes
    are in one split: shuffle those.

    Args:
      logits: of Inception's last layer without its bias, [N, classes].
      split_size: samples of one split.

    Returns:
      Mean and standard deviation over splits, the population's as in torch-fidelity.

    Raises:
      InputError: there are no logits, or not all are finite.
    """
    check_features(logits, fewest=1)
    splits = [logits[i : i + split_size] for i in range(0, len(logits), split_size)]
    scores = [_score(split.astype(np.float64)) for split in splits]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: np.ndarray) -> float:
    # Logarithms come from logits: those of a rounded softmax may be of 0.
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    log_marginal = np.log(marginal, where=marginal > 0, out=np.zeros_like(marginal))
    return np.exp((p * (log_p - log_marginal)).sum(axis=1).mean())
