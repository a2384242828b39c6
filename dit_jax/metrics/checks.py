"""What all measures ask of features."""

import numpy as np

from dit_jax.errors import InputError


def check_features(*sets: np.ndarray, fewest: int) -> None:
    """Checks sets of features [N, D] before work starts.

    Raises:
      InputError: one is no matrix, has fewer than `fewest` rows or values that are not finite, or
        they differ in D.
    """
    for features in sets:
        if features.ndim != 2 or features.shape[1] != sets[0].shape[1]:
            shapes = " and ".join(str(x.shape) for x in sets)
            raise InputError(f"features {shapes}: give [N, D] of one feature space")
        if len(features) < fewest:
            raise InputError(f"{len(features)} features are too few: give at least {fewest}")
        if not np.isfinite(features).all():
            raise InputError(f"features {features.shape} have values that are not finite")
