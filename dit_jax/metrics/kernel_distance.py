"""The kernel distance between two sets of features: KID, in Inception's."""

import numpy as np

from dit_jax.metrics.checks import check_features


def kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Unbiased squared MMD by the kernel (x.y / D + 1)^3 over random subsets (arXiv 1801.01401).

    In float64. Numbers of subsets and their seed are torch-fidelity's, and so are the subsets: it
    finds the same values, up to the rounding of its float32.

    Args:
      a: features [N, D].
      b: features [M, D].
      subsets: how often a subset is drawn from each set.
      subset_size: features of a subset, drawn without replacement.
      seed: of the subsets.

    Returns:
      Mean and standard deviation over subsets. Sets that are alike have a mean around 0, which may
      be negative.

    Raises:
      InputError: features do not fit together, or are fewer than a subset's.
    """
    check_features(a, b, fewest=max(subset_size, 2))
    rng = np.random.RandomState(seed)
    distances = [
        _squared_mmd(*(x[rng.choice(len(x), subset_size, replace=False)] for x in (a, b)))
        for _ in range(subsets)
    ]
    return float(np.mean(distances)), float(np.std(distances))


def _squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = len(a)
    within = sum(k.sum() - np.trace(k) for k in (_kernel(a, a), _kernel(b, b)))
    return within / (size * (size - 1)) - 2 * _kernel(a, b).mean()


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3
