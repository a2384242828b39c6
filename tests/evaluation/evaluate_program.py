"""What tests/evaluation/test_evaluate.py runs as two processes: both generate and measure."""

import json
import pathlib
import sys

import jax

from dit_jax.evaluation.evaluate import evaluate
from dit_jax.evaluation.options import Evaluation
from dit_jax.parallel import hosts
from tests.evaluation.tiny_run import tiny_run
from tests.metrics.small_space import Small

OPTIONS = {"samples": 10, "batch_size": 8, "metrics": ("fid", "pr"), "features": Small()}

if __name__ == "__main__":
    hosts.start()
    folder = pathlib.Path(sys.argv[1])
    options = Evaluation(**OPTIONS, reference=str(folder / "reference.npz"))
    report = evaluate(tiny_run(), folder / "two", options)
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(report.metrics))
