"""What tests/metrics/test_gaussian.py runs as two processes: saves the moments each has found."""

import sys

import jax
import numpy as np

from dit_jax.metrics import Moments
from dit_jax.parallel import hosts
from tests.metrics.features import features

# What each of the two processes sees; a matrix of 600 rows travels in several parts.
CASES = {
    "many": (features(0, 50, mean=3.0), features(1, 31, mean=-1.0)),
    "wide": (features(2, 9, 600), features(3, 5, 600)),
    "all on the second": (features(4, 0), features(4, 20)),
}


if __name__ == "__main__":
    hosts.start()
    index = jax.process_index()
    found = {}
    for name, parts in CASES.items():
        moments = Moments.none(parts[0].shape[1])
        if len(parts[index]):
            moments = moments.add(parts[index])
        together = moments.of_all_processes()
        found |= {f"{name} {key}": value for key, value in vars(together).items()}
    found["nothing count"] = Moments.none(3).of_all_processes().count
    np.savez(f"{sys.argv[1]}/{index}.npz", **found)
