"""Generate, save and measure: what `evaluate.py` and the end of training do."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
from jax.sharding import Mesh

from dit_jax.diffusion import Guidance, Sampling, Sharing
from dit_jax.errors import InputError
from dit_jax.evaluation.generation import generate
from dit_jax.evaluation.held_out import held_out_loss
from dit_jax.evaluation.judge import stack
from dit_jax.evaluation.options import Evaluation
from dit_jax.images import save_grid
from dit_jax.latents import Latents
from dit_jax.metrics import Gaussian, frechet_distance
from dit_jax.metrics.images import ImageFile
from dit_jax.metrics.measure import Measurement
from dit_jax.parallel import hosts
from dit_jax.run import Run
from dit_jax.sampling import choose_sampling


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

    Leaves `samples.npz` in ADM's format (`arr_0`, uint8 [N, H, W, C]) and what they are in
    `samples.json`, `grid.png` and `metrics.json`. A call that was stopped is gone on with, and
    samples that are there already are measured as they are.

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
    sampling = choose_sampling(run, None, guidance, sharing, weak)
    measurement = prepare(options, run.latents, run.shape)
    if measurement is not None:
        _check_shared(folder)
    made = _generation_protocol(run, options, sampling, weak)
    labels = choose_labels(run.model.num_classes, options)
    chosen = {"guidance": guidance, "sharing": sharing, "weak": weak, "mesh": mesh}
    size = {"batch_size": options.batch_size, "seed": options.seed}
    path = str(generate(run, labels, folder, made, **size, **chosen))

    def look() -> dict[str, float]:
        samples = ImageFile.open(path)
        columns = min(run.model.num_classes or 10, 10)
        save_grid(folder / "grid.png", samples.read(10 * columns), columns)
        return {} if options.judge is None else judge_samples(run, samples.read(), labels, options)

    metrics = hosts.on_main(look)
    if measurement is not None:
        metrics |= measurement(ImageFile.open(path))
    if options.held_out:
        size = options.batch_size
        metrics["held_out_loss"] = held_out_loss(run, options.held_out, size, options.seed)
    report = Report(metrics, made | hosts.on_main(lambda: _measuring_protocol(options)))
    text = json.dumps(dataclasses.asdict(report), indent=2) + "\n"
    hosts.on_main(lambda: (folder / "metrics.json").write_text(text) and None)
    return report


@functools.lru_cache(maxsize=1)
def prepare(
    options: Evaluation, latents: Latents, shape: tuple[int, int, int]
) -> Measurement | None:
    """Finds what would keep samples from being measured before there are any.

    The last result is kept, so that a run in training looks at its reference once.

    Args:
      options: what is measured; None comes back where that needs no network.
      latents: what decodes the samples.
      shape: of one before it is decoded.

    Raises:
      InputError: there are no weights of a network, or the reference does not serve.
    """
    options.check()
    decoder = latents.load_decoder()
    if not options.metrics:
        return None
    reference = ImageFile.open(options.reference) if options.reference else None
    measurement = Measurement(options.metrics, options.features, reference)
    x = jax.ShapeDtypeStruct((1, *shape), np.float32)
    measurement.check((options.samples, *jax.eval_shape(latents.decode, decoder, x).shape[1:]))
    return measurement


def _check_shared(folder: pathlib.Path) -> None:
    """Raises InputError where not all processes see a folder, as they share what is in it."""
    mark = folder / "seen"

    def leave() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()

    hosts.on_main(leave)
    seen = hosts.gather(np.array(mark.exists())).all()
    hosts.on_main(mark.unlink)
    if not seen:
        raise InputError(
            f"not all processes see '{folder}', whose images they share: give --out on a disk of "
            f"all, or measure the samples afterwards by one process (python -m dit_jax metrics)"
        )


def choose_labels(classes: int, options: Evaluation) -> np.ndarray:
    """The class of each sample, int32 [N]; zeros for a model without classes."""
    classes = max(classes, 1)
    if options.labels == "random":
        random = np.random.default_rng(options.seed)
        return random.integers(0, classes, options.samples, dtype=np.int32)
    return (np.arange(options.samples) % classes).astype(np.int32)


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


def _generation_protocol(
    run: Run, options: Evaluation, sampling: Sampling, weak: Run | None
) -> dict[str, Any]:
    """All that decides what the samples are."""
    law = {"balanced": "balanced, in turn", "random": "drawn at random"}[options.labels]
    return {
        "run": run.experiment.run.dir,
        "step": run.step,
        "samples": options.samples,
        "labels": law if run.model.num_classes else "none",
        "seed": options.seed,
        "solver": repr(sampling.solver),
        "guidance": repr(sampling.guidance),
        "weak run": weak and f"{weak.experiment.run.dir}, step {weak.step}",
        "sharing": repr(sampling.sharing) if sampling.sharing.acts else None,
        "parameters": f"EMA {run.experiment.training.ema[0]}, {_fingerprint(run.params)}",
        "compute dtype": getattr(run.model, "dtype", "float32"),
        "decoder": f"{type(run.latents).__name__}, {_fingerprint(run.latents.load_decoder())}",
        "batch size": options.batch_size,
        "uint8": "truncate(127.5 x + 128)",
    }


def _measuring_protocol(options: Evaluation) -> dict[str, Any]:
    reference = options.reference
    if reference is not None:
        reference = f"{reference}, SHA-256 {ImageFile.open(reference).checksum()}"
    space = options.features
    return {
        "held-out loss": f"{options.held_out} test images" if options.held_out else None,
        "judge": options.judge and f"{options.judge!r}, against the training split",
        "features": f"{space.description}; weights {space.weights}" if options.metrics else None,
        "reference": reference,
        "matmul precision": jax.config.jax_default_matmul_precision or "the backend's",
        "backend": f"{jax.default_backend()} x {jax.device_count()}",
    }


def _fingerprint(params: Any) -> str:
    """Eight digits that tell parameters from others, however they are sharded."""
    sums = [int(x) for x in jax.device_get(_bit_sums(jax.tree.leaves(params)))]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:8]


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    words = [jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) for x in leaves]
    return [x.sum(dtype=jnp.uint32) for x in words]
