"""Measures of samples against real images, in any feature space."""

from dit_jax.metrics.frechet import frechet_distance
from dit_jax.metrics.gaussian import Gaussian, Moments
from dit_jax.metrics.inception_score import inception_score
from dit_jax.metrics.kernel_distance import kernel_distance
from dit_jax.metrics.precision_recall import precision_recall

__all__ = [
    "Gaussian",
    "Moments",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "precision_recall",
]
