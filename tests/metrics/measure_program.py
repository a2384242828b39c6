"""What tests/metrics/test_measure.py runs as two processes: saves what each has measured."""

import json
import pathlib
import sys

import jax

from dit_jax.metrics.images import ImageFile
from dit_jax.metrics.measure import Measurement
from dit_jax.parallel import hosts
from tests.metrics.small_space import Small

NAMES = ("fid", "sfid", "is", "pr")

if __name__ == "__main__":
    hosts.start()
    folder = pathlib.Path(sys.argv[1])
    files = [ImageFile.open(str(folder / name)) for name in ("samples.npz", "reference.npz")]
    found = Measurement(NAMES, Small(), files[1], batch_size=3)(files[0])
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(found))
