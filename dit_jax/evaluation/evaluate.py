"""Generate, save and measure: what `evaluate.py` and the end of training do."""

import dataclasses
import json
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np
import rich.progress
import rich.table

from dit_jax.diffusion import Guidance
from dit_jax.errors import InputError
from dit_jax.evaluation.frechet import frechet_distance
from dit_jax.evaluation.held_out import held_out_loss
from dit_jax.evaluation.judge import stack
from dit_jax.evaluation.options import Evaluation
from dit_jax.images import save_grid
from dit_jax.run import Run
from dit_jax.sampling import choose_guidance, sample_batches


@dataclasses.dataclass(frozen=True)
class Report:
    """What was measured, and the protocol that makes the numbers mean something.

    Attributes:
      metrics: name -> value.
      protocol: name -> how the samples and the metrics were made.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]

    def table(self) -> rich.table.Table:
        """A table for the terminal: metrics, then protocol."""
        table = rich.table.Table(show_header=False)
        for name, value in self.metrics.items():
            table.add_row(name, f"{value:.4f}", style="bold")
        for name, value in self.protocol.items():
            table.add_row(name, str(value))
        return table


def evaluate(
    run: Run,
    folder: pathlib.Path,
    options: Evaluation,
    guidance: Guidance | float | None = None,
) -> Report:
    """Generates samples into `folder` and measures them.

    Leaves `samples.npz` in ADM's format (`arr_0`, uint8 [N, H, W, C]), `grid.png` and
    `metrics.json`. Classes take turns, so that all are equally frequent.

    Args:
      run: what to evaluate.
      folder: where to write.
      options: how many samples, and who judges them.
      guidance: guidance scale or object; the run's own by default.

    Raises:
      InputError: too few samples are asked for, or the latents cannot be decoded.
    """
    if options.samples < 1 or options.batch_size < 1:
        raise InputError(
            f"{options.samples} samples in batches of {options.batch_size}: both must be at least 1"
        )
    if options.judge is not None and options.samples < 2:
        raise InputError("one sample has no distribution to judge: ask for at least 2")
    protocol = _protocol(run, options, choose_guidance(run, guidance))
    classes = run.model.num_classes
    labels = (np.arange(options.samples) % max(classes, 1)).astype(np.int32)
    folder.mkdir(parents=True, exist_ok=True)
    images = _generate_to_file(run, labels, folder / "samples.npy", options, guidance)
    _save_npz(folder / "samples.npz", images)
    save_grid(folder / "grid.png", images[: 10 * (classes or 10)], classes or 10)
    metrics = {} if options.judge is None else judge_samples(run, images, labels, options)
    if options.held_out:
        size = options.batch_size
        metrics["held_out_loss"] = held_out_loss(run, options.held_out, size, options.seed)
    report = Report(metrics, protocol)
    (folder / "metrics.json").write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    (folder / "samples.npy").unlink()
    return report


def judge_samples(
    run: Run, images: np.ndarray, labels: np.ndarray, options: Evaluation
) -> dict[str, float]:
    """Measures samples, and held-out real images by the same measure, for comparison."""
    data = run.experiment.data
    judge = options.judge.fit(data.open("train"))
    real, _ = stack(data.open("train"))
    held_out, held_out_labels = stack(data.open("test"))
    reference = judge.features(real)
    metrics = {}
    for prefix, x, y in (("", images, labels), ("real_test_", held_out, held_out_labels)):
        metrics[f"{prefix}frechet_distance"] = frechet_distance(judge.features(x), reference)
        if run.model.num_classes:
            metrics[f"{prefix}label_agreement"] = float(np.mean(judge.labels(x) == y))
    return metrics


def _generate_to_file(
    run: Run,
    labels: np.ndarray,
    path: pathlib.Path,
    options: Evaluation,
    guidance: Guidance | float | None,
) -> np.ndarray:
    """Streams samples to a memory-mapped file, so that no host holds them all."""
    batches = sample_batches(run, labels, options.batch_size, seed=options.seed, guidance=guidance)
    images = None
    done = 0
    with rich.progress.Progress() as progress:
        task = progress.add_task("sampling", total=len(labels))
        for batch in batches:
            if images is None:
                shape = (len(labels), *batch.shape[1:])
                images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
            images[done : done + len(batch)] = batch
            done += len(batch)
            progress.update(task, completed=done)
    images.flush()
    return images


def _save_npz(path: pathlib.Path, images: np.ndarray) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array(file, images)


def _protocol(run: Run, options: Evaluation, guidance: Guidance | None) -> dict[str, Any]:
    return {
        "step": run.step,
        "samples": options.samples,
        "labels": "balanced, in turn" if run.model.num_classes else "none",
        "seed": options.seed,
        "solver": repr(run.experiment.sampling.solver),
        "guidance": repr(guidance),
        "parameters": f"EMA {run.experiment.training.ema[0]}",
        "compute dtype": getattr(run.model, "dtype", "float32"),
        "uint8": "truncate(127.5 x + 128)",
        "held-out loss": f"{options.held_out} test images" if options.held_out else None,
        "feature space": repr(options.judge),
        "reference": "training split" if options.judge else None,
        "backend": f"{jax.default_backend()} x {jax.device_count()}",
    }
