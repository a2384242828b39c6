"""The Frechet distance between two normal distributions: FID, sFID, FD-DINOv2.

Which of them it is depends on the features alone. FID takes Inception's pooled ones (2048; Heusel
et al., arXiv 1706.08500), sFID the first 7 channels of one of its 17 x 17 layers (2023 values,
which keep where things are; Nash et al., arXiv 2103.03841), FD-DINOv2 the class token of DINOv2
(Stein et al., arXiv 2306.04675).
"""

import functools
import logging

import numpy as np

from dit_jax.errors import InputError
from dit_jax.metrics.gaussian import Gaussian

log = logging.getLogger(__name__)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2), in float64.

    With A = F F^T and B = G G^T the trace of the root is the sum of the singular values of F^T G.
    So no root is taken of a small difference of large numbers, as happens to the eigenvalues of
    A B, and covariances without full rank do no harm. A set has the distance 0 to itself.

    Raises:
      InputError: the distributions are of different feature spaces.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"features of {len(a.mean)} and of {len(b.mean)} dimensions have no distance: take "
            f"both from one feature space"
        )
    for gaussian in (a, b):
        if gaussian.count is not None and gaussian.count <= len(gaussian.mean):
            _warn(gaussian.count, len(gaussian.mean))
    means = np.square(a.mean - b.mean).sum()
    root = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * root
    return float(max(means + spread, 0.0))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Returns F [D, rank] with F F^T = covariance."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # It has no full rank.
        values, vectors = np.linalg.eigh(covariance)
        real = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return vectors[:, real] * np.sqrt(values[real])


@functools.cache  # Once is enough for a run that measures often.
def _warn(count: int, dimension: int) -> None:
    log.warning(
        "a Frechet distance of %d features in %d dimensions is far too large, and comparable only "
        "with one of as many: measure at least %d",
        *(count, dimension, dimension + 1),
    )
