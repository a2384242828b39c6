"""Which experts a mixture of experts uses: when, for which classes, where, and how evenly.

The maps are those of DiT-MoE's analysis of expert specialisation (Fei et al., arXiv 2407.11633).
There the choice follows position and time and hardly the class, the more so in the first layers.
"""

import csv
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from dit_jax.checkpoint import newest
from dit_jax.data import Records, order
from dit_jax.errors import InputError
from dit_jax.evaluation import expert_pictures
from dit_jax.evaluation.expert_use import ExpertUse, measure, shares
from dit_jax.models.inputs import example_inputs
from dit_jax.run import Run, load


def draw_experts(
    folder: str,
    out: str | None,
    samples: int,
    times: int,
    batch_size: int,
    seed: int,
) -> list[str]:
    """Draws a run's use of experts as pictures, with the same numbers as tables.

    Leaves by_time, by_class, by_position and balance, each as .png and .csv. Layers are numbered
    from 0 among those that have experts. The balance is what training logged.

    Args:
      folder: a run folder, or one of its checkpoints.
      out: folder to make; `experts` in the run folder by default.
      samples: real images to noise, of the held-out split where there is one.
      times: noise levels of each.
      batch_size: images at once.
      seed: which images, and their noise.

    Returns:
      Lines that say what was made, and what was not.

    Raises:
      InputError: there is no such run, it has no experts, its data is missing, a number makes no
        sense, or `out` has files.
    """
    import matplotlib

    if min(samples, batch_size) < 1 or not 1 <= times <= 100:
        raise InputError(
            f"{samples} samples in batches of {batch_size} at {times} times: all must be at least "
            "1, times at most 100"
        )
    run_folder = pathlib.Path(newest(folder)[0].folder.parent)
    target = pathlib.Path(out).expanduser() if out else run_folder / "experts"
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"'{target}' exists already: give another folder with --out")
    run = load(folder)
    _check_experts(run)
    records, split = _held_out(run)
    images, labels = _draw(records, min(samples, len(records)), seed)
    use = measure(run, images, labels, (np.arange(times) + 0.5) / times, batch_size, seed)
    target.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(expert_pictures.STYLE):
        missing = [*_write_maps(use, target), *_write_balance(run_folder / "log.jsonl", target)]
    return [f"{len(images)} images of the {split} split at {times} times: {target}", *missing]


def _check_experts(run: Run) -> None:
    """Raises InputError where the run's model has no experts."""
    output, _ = jax.eval_shape(run.model.init_with_output, *example_inputs(run.shape))
    if "routing" not in output.aux:
        raise InputError(
            f"this run's {type(run.model).__name__} has no experts to look at: give a run whose "
            "channel mixer is an MoE"
        )


def _held_out(run: Run) -> tuple[Records, str]:
    """Opens the test split, or the training split where there is no other."""
    try:
        return run.experiment.data.open("test"), "test"
    except InputError:
        return run.experiment.data.open("train"), "training"


def _draw(records: Records, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads different records at random: images [N, H, W, C] and labels [N]."""
    drawn = [records[order(i, len(records), seed)] for i in range(samples)]
    return np.stack([r["image"] for r in drawn]), np.array([r["label"] for r in drawn])


def _write_maps(use: ExpertUse, folder: pathlib.Path) -> Iterator[str]:
    """Writes three pictures and three tables; yields what there is to say."""
    layers, rows, columns, _ = use.by_position.shape
    layer = range(layers)

    time = shares(use.by_time)
    axes = {"layer": layer, "time": [f"{t:.6g}" for t in use.times]}
    _write_table(folder / "by_time.csv", axes, time)
    expert_pictures.draw_by_time(folder / "by_time.png", time)

    position = shares(use.by_position)
    axes = {"layer": layer, "row": range(rows), "column": range(columns)}
    _write_table(folder / "by_position.csv", axes, position)
    expert_pictures.draw_by_position(folder / "by_position.png", position)

    drawn = np.flatnonzero(use.by_class.sum((0, 2)))
    if not len(drawn):
        yield "the data has no classes: no by_class"
        return
    by_class, names = use.by_class[:, drawn], [str(c) for c in drawn]
    if use.without_class is not None:
        by_class = np.append(by_class, use.without_class[:, None], axis=1)
        names.append("null")
    _write_table(folder / "by_class.csv", {"layer": layer, "class": names}, shares(by_class))
    expert_pictures.draw_by_class(folder / "by_class.png", shares(by_class), names)


def _write_balance(log: pathlib.Path, folder: pathlib.Path) -> Iterator[str]:
    """Writes the load over training from a run's log; yields why not, where there is none."""
    text = log.read_text() if log.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()  # A killed run may leave half a line.
    logged = {line["step"]: line for line in map(json.loads, whole) if "moe_max_load" in line}
    if not logged:
        yield f"no load of experts in {log}: no balance"
        return
    # Steps that were run again after a resume count once.
    table = [(s, logged[s]["moe_max_load"], logged[s]["moe_entropy"]) for s in sorted(logged)]
    with (folder / "balance.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "max_load", "entropy"), *table])
    expert_pictures.draw_balance(folder / "balance.png", *np.array(table).T)


def _write_table(path: pathlib.Path, axes: dict[str, Sequence], share: np.ndarray) -> None:
    """Writes shares [..., E] as one row a number; `axes` name the axes but the last."""
    axes = axes | {"expert": range(share.shape[-1])}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*axes, "share"])
        for labels, value in zip(itertools.product(*axes.values()), share.flat):
            writer.writerow([*labels, f"{value:.6f}"])
