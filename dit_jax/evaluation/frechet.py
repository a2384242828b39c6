"""The Frechet distance between two sets of features."""

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of normals fitted to features [N, D] and [M, D], in float64.

    |mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), the quantity that FID computes in
    Inception's features (Heusel et al., arXiv 1706.08500). The symmetric form needs eigenvalues of
    symmetric matrices alone, so that rank-deficient covariances do no harm.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_b @ root)
    means = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    spread = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    return float(max(means + spread, 0.0))
