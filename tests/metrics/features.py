"""Features that metrics are tested on."""

import numpy as np


def features(seed, count=200, dimension=6, mean=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimension)) @ rng.normal(size=(dimension, dimension)) + mean
