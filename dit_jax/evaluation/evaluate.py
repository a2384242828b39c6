"""Generate, save and measure: what `evaluate.py` and the end of training do."""

import dataclasses
import functools
import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import rich.progress
import rich.table
from jax.sharding import Mesh

from dit_jax.diffusion import Guidance, Sampling, Sharing
from dit_jax.errors import InputError
from dit_jax.evaluation.held_out import held_out_loss
from dit_jax.evaluation.judge import stack
from dit_jax.evaluation.options import Evaluation
from dit_jax.images import save_grid
from dit_jax.metrics import Gaussian, frechet_distance
from dit_jax.parallel import hosts
from dit_jax.run import Run
from dit_jax.sampling import choose_sampling, sample_batches


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
    sharing: Sharing | None = None,
    weak: Run | None = None,
    mesh: Mesh | None = None,
) -> Report:
    """Generates samples into `folder` and measures them.

    Leaves `samples.npz` in ADM's format (`arr_0`, uint8 [N, H, W, C]), `grid.png` and
    `metrics.json`. Classes take turns, so that all are equally frequent.

    Args:
      run: what to evaluate.
      folder: where to write.
      options: how many samples, and who judges them.
      guidance: guidance scale or object; the run's own by default.
      sharing: evaluations that share a condition encoder's output; the run's own by default.
      weak: the worse run, for autoguidance, which a scale alone means then.
      mesh: devices to use; all by default, with a copy of the model each.

    Raises:
      InputError: too few samples are asked for, or the latents cannot be decoded.
    """
    if options.samples < 1 or options.batch_size < 1:
        raise InputError(
            f"{options.samples} samples in batches of {options.batch_size}: both must be at least 1"
        )
    if options.judge is not None and options.samples < 2:
        raise InputError("one sample has no distribution to judge: ask for at least 2")
    protocol = _protocol(run, options, choose_sampling(run, None, guidance, sharing, weak), weak)
    classes = run.model.num_classes
    labels = (np.arange(options.samples) % max(classes, 1)).astype(np.int32)
    samples = folder / "samples.npy"
    hosts.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    chosen = {"guidance": guidance, "sharing": sharing, "weak": weak}
    sample = functools.partial(sample_batches, seed=options.seed, mesh=mesh, **chosen)
    _to_file(sample(run, labels, options.batch_size), len(labels), samples)

    def look() -> dict[str, float]:
        images = np.load(samples, mmap_mode="r")
        _save_npz(folder / "samples.npz", images)
        save_grid(folder / "grid.png", images[: 10 * (classes or 10)], classes or 10)
        return {} if options.judge is None else judge_samples(run, images, labels, options)

    metrics = hosts.on_main(look)
    if options.held_out:
        size = options.batch_size
        metrics["held_out_loss"] = held_out_loss(run, options.held_out, size, options.seed)
    report = Report(metrics, protocol)
    text = json.dumps(dataclasses.asdict(report), indent=2) + "\n"
    hosts.on_main(lambda: (folder / "metrics.json").write_text(text))
    hosts.on_main(samples.unlink)
    return report


def judge_samples(
    run: Run, images: np.ndarray, labels: np.ndarray, options: Evaluation
) -> dict[str, float]:
    """Measures samples, and held-out real images by the same measure, for comparison."""
    data = run.experiment.data
    judge = options.judge.fit(data.open("train"))
    real, _ = stack(data.open("train"))
    held_out, held_out_labels = stack(data.open("test"))
    reference = Gaussian.of(judge.features(real))
    metrics = {}
    for prefix, x, y in (("", images, labels), ("real_test_", held_out, held_out_labels)):
        found = Gaussian.of(judge.features(x))
        metrics[f"{prefix}frechet_distance"] = frechet_distance(found, reference)
        if run.model.num_classes:
            metrics[f"{prefix}label_agreement"] = float(np.mean(judge.labels(x) == y))
    return metrics


def _to_file(batches: Iterator[np.ndarray], count: int, path: pathlib.Path) -> None:
    """Streams samples to a memory-mapped file of the main process: no host holds them all."""
    images = None
    done = 0
    with rich.progress.Progress(disable=not hosts.is_main()) as progress:
        task = progress.add_task("sampling", total=count)
        for batch in batches:
            if not hosts.is_main():
                continue
            if images is None:
                shape = (count, *batch.shape[1:])
                images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
            images[done : done + len(batch)] = batch
            done += len(batch)
            progress.update(task, completed=done)
    if images is not None:
        images.flush()


def _save_npz(path: pathlib.Path, images: np.ndarray) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array(file, images)


def _protocol(
    run: Run, options: Evaluation, sampling: Sampling, weak: Run | None
) -> dict[str, Any]:
    return {
        "step": run.step,
        "samples": options.samples,
        "labels": "balanced, in turn" if run.model.num_classes else "none",
        "seed": options.seed,
        "solver": repr(sampling.solver),
        "guidance": repr(sampling.guidance),
        "weak run": weak and f"{weak.experiment.run.dir}, step {weak.step}",
        "sharing": repr(sampling.sharing) if sampling.sharing.acts else None,
        "parameters": f"EMA {run.experiment.training.ema[0]}",
        "compute dtype": getattr(run.model, "dtype", "float32"),
        "uint8": "truncate(127.5 x + 128)",
        "held-out loss": f"{options.held_out} test images" if options.held_out else None,
        "feature space": repr(options.judge),
        "reference": "training split" if options.judge else None,
        "backend": f"{jax.default_backend()} x {jax.device_count()}",
    }
