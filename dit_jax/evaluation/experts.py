"""Which experts a mixture of experts uses: when, for which classes, where, and how evenly.

The maps are those of DiT-MoE's analysis of expert specialisation (Fei et al., arXiv 2407.11633).
There the choice follows position and time and hardly the class, the more so in the first layers.
"""

import csv
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich.progress

from dit_jax.checkpoint import newest
from dit_jax.data import Records, order
from dit_jax.diffusion import Process
from dit_jax.errors import InputError
from dit_jax.layers.patch import patch_grid
from dit_jax.models.inputs import example_inputs
from dit_jax.moe import Routing
from dit_jax.moe.dispatch.dispatch import token_of_slot
from dit_jax.randomness import Purpose, key_for
from dit_jax.run import Run, load

# White is even, as is the middle of the scale; ColorBrewer's pair for all kinds of eyes.
_COLORS, _LINE, _GREY = "RdBu_r", "#2166ac", "#d1d5db"
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 9,
    "figure.labelsize": 8,
    "axes.linewidth": 0.5,
    "axes.edgecolor": _GREY,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "savefig.dpi": 200,
}


@dataclasses.dataclass(frozen=True)
class ExpertUse:
    """How often each expert was chosen: slots that were used, whether or not they were dropped.

    Attributes:
      times: library times, [T].
      by_time: over all samples and tokens, [L, T, E] int64; L counts layers that have experts.
      by_class: over all times and tokens, [L, classes, E]; empty where the data has no classes.
      without_class: the same samples under the null label, [L, E]; None where there is no such.
      by_position: over all samples and times, [L, rows, columns, E].
    """

    times: np.ndarray
    by_time: np.ndarray
    by_class: np.ndarray
    without_class: np.ndarray | None
    by_position: np.ndarray


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
    with matplotlib.rc_context(_STYLE):
        missing = [*_write_maps(use, target), *_write_balance(run_folder / "log.jsonl", target)]
    return [f"{len(images)} images of the {split} split at {times} times: {target}", *missing]


# What is counted.


@functools.partial(jax.jit, static_argnums=(1, 2))
def expert_use(routing: Routing, samples: int, tokens: int) -> jax.Array:
    """Counts how often each expert takes each token.

    Args:
      routing: of L layers: its leaves are [L, G, S].
      samples: samples in all groups together (B).
      tokens: tokens of a sample (N).

    Returns:
      [L, B, N, E] int32. Slots that are not used do not count.
    """
    members = samples * tokens // routing.experts.shape[1]

    def count(layer: Routing) -> jax.Array:
        chosen = token_of_slot(layer, members), layer.experts
        uses = jnp.zeros((samples * tokens, layer.count), jnp.int32)
        return uses.at[chosen].add(1, mode="drop")  # An unused slot's expert is out of bounds.

    return jax.vmap(count)(routing).reshape(-1, samples, tokens, routing.count)


def measure(
    run: Run,
    images: np.ndarray,
    labels: np.ndarray,
    times: np.ndarray,
    batch_size: int,
    seed: int,
) -> ExpertUse:
    """Noises images to every time and counts which experts the run's model chooses.

    A model that knows a null label runs a second time under it, for `without_class` alone.

    Args:
      run: a run whose model has experts.
      images: [N, H, W, C], as the run's source delivers them.
      labels: class of each, [N].
      times: library times, [T].
      batch_size: images at once.
      seed: of the encoder and the noise.
    """
    count = functools.partial(_count, run.model, run.process, run.params)
    encode, frozen = jax.jit(run.latents.encode), run.latents.load()
    by_sample, by_token, without_class = [], 0, 0
    for start in rich.progress.track(range(0, len(images), batch_size), "counting"):
        rows = slice(start, start + batch_size)
        x0 = encode(frozen, key_for(seed, start, Purpose.ENCODE), images[rows])
        noise = jax.random.normal(key_for(seed, start, Purpose.NOISE), x0.shape)
        condition = {"label": jnp.asarray(labels[rows], jnp.int32)}
        samples, tokens = jax.device_get(count(x0, noise, times, condition))
        by_sample.append(samples)
        by_token += tokens.astype(np.int64)
        if run.model.num_classes:
            null = run.model.null_condition(condition)
            without_class += jax.device_get(count(x0, noise, times, null)[0]).sum((0, 2))
    by_sample = np.concatenate(by_sample, axis=2, dtype=np.int64)
    classes = np.arange(run.experiment.data.num_classes)
    grid = patch_grid(run.shape, run.model.patch)
    return ExpertUse(
        times=times,
        by_time=by_sample.sum(2).swapaxes(0, 1),
        by_class=np.einsum("lne,nc->lce", by_sample.sum(0), labels[:, None] == classes),
        without_class=without_class if run.model.num_classes else None,
        by_position=by_token.reshape(len(by_token), *grid, -1),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _count(
    model: nn.Module,
    process: Process,
    params: Any,
    x0: jax.Array,
    noise: jax.Array,
    times: jax.Array,
    condition: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Counts the use of experts by sample, [T, L, B, E], and by token, [L, N, E]."""
    tokens = math.prod(patch_grid(x0.shape, model.patch))

    def at(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        t = jnp.broadcast_to(t, (len(x0),))
        x = process.corrupt(x0, noise, t)
        output = model.apply({"params": params}, x, process.model_time(t), condition)
        use = expert_use(output.aux["routing"], len(x0), tokens)
        return use.sum(2), use.sum(1)

    by_sample, by_token = jax.lax.map(at, times)
    return by_sample, by_token.sum(0)


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


# What is written.


def shares(counts: np.ndarray) -> np.ndarray:
    """Divides counts [..., E] by their sum over experts; NaN where nothing was counted."""
    total = counts.sum(-1, keepdims=True)
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def _write_maps(use: ExpertUse, folder: pathlib.Path) -> Iterator[str]:
    """Writes three pictures and three tables; yields what there is to say."""
    layers, rows, columns, _ = use.by_position.shape
    layer = range(layers)

    time = shares(use.by_time)
    axes = {"layer": layer, "time": [f"{t:.6g}" for t in use.times]}
    _write_table(folder / "by_time.csv", axes, time)
    _draw_by_time(folder / "by_time.png", time)

    position = shares(use.by_position)
    axes = {"layer": layer, "row": range(rows), "column": range(columns)}
    _write_table(folder / "by_position.csv", axes, position)
    _draw_by_position(folder / "by_position.png", position)

    drawn = np.flatnonzero(use.by_class.sum((0, 2)))
    if not len(drawn):
        yield "the data has no classes: no by_class"
        return
    by_class, names = use.by_class[:, drawn], [str(c) for c in drawn]
    if use.without_class is not None:
        by_class = np.append(by_class, use.without_class[:, None], axis=1)
        names.append("null")
    _write_table(folder / "by_class.csv", {"layer": layer, "class": names}, shares(by_class))
    _draw_by_class(folder / "by_class.png", shares(by_class), names)


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
    _draw_balance(folder / "balance.png", *np.array(table).T)


def _write_table(path: pathlib.Path, axes: dict[str, Sequence], share: np.ndarray) -> None:
    """Writes shares [..., E] as one row a number; `axes` name the axes but the last."""
    axes = axes | {"expert": range(share.shape[-1])}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*axes, "share"])
        for labels, value in zip(itertools.product(*axes.values()), share.flat):
            writer.writerow([*labels, f"{value:.6f}"])


# What is drawn.


def _draw_by_time(path: pathlib.Path, share: np.ndarray) -> None:
    """Draws shares [L, T, E]."""
    times = share.shape[1]
    ticks = {0: "0", times / 2: "0.5", times: "1"}
    _draw_panels(path, share, ticks, "time, from data (0) to noise (1)", "time")


def _draw_by_class(path: pathlib.Path, share: np.ndarray, names: list[str]) -> None:
    """Draws shares [L, C, E]; the null label stands apart, wide enough to be seen."""
    classes = len(names) - (names[-1] == "null")
    share = np.repeat(share, 3, axis=1)
    labels = range(0, classes, 1 if classes <= 10 else -(-classes // 5))
    ticks = {3 * i + 1.5: names[i] for i in labels}
    if classes < len(names):
        wide = max(1, classes // 12)
        null = np.repeat(share[:, -3:], wide, axis=1)
        gap = np.full_like(null[:, :wide], np.nan)
        share = np.concatenate([share[:, :-3], gap, null], axis=1)
        ticks[share.shape[1] - 1.5 * wide] = "∅"
    _draw_panels(path, share, ticks, "class (∅: none)", "class")


def _draw_panels(
    path: pathlib.Path, share: np.ndarray, ticks: dict[float, str], label: str, by: str
) -> None:
    """Draws shares [L, X, E] as a heatmap a layer, X to the right and experts downwards."""
    from matplotlib.figure import Figure

    layers, width, experts = share.shape
    side = max(2.1, width / 450)  # Inches, so that no column is lost.
    fitting = range(1, 1 + int(15 / side))
    columns = min(fitting, key=lambda n: -layers % n + abs(n - 1.2 * layers**0.5))
    rows = -(-layers // columns)
    size = 1.1 + side * columns, 1.2 + rows * (0.45 + 0.12 * max(experts, 7))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for layer, panel in enumerate(panels.flat[:layers]):
        extent = (0, width, experts - 0.5, -0.5)
        image = _image(panel, share[layer].T, extent, experts)
        panel.set_title(f"layer {layer}", loc="left")
        panel.tick_params(labelbottom=layer + columns >= layers)
        panel.set_xticks([*ticks], [*ticks.values()])
        panel.set_yticks(range(0, experts, -(-experts // 9)))
    for panel in panels.flat[layers:]:
        panel.set_axis_off()
    figure.supxlabel(label)
    figure.supylabel("expert")
    _finish(path, figure, image, by)


def _draw_by_position(path: pathlib.Path, share: np.ndarray) -> None:
    """Draws shares [L, H, W, E] as a map a layer (downwards) and expert (to the right)."""
    from matplotlib.figure import Figure

    layers, height, width, experts = share.shape
    tall = height / width
    side = 0.62 if max(experts, layers) < 10 else 0.42
    size = 1.5 + side * experts, 1.0 + side * tall * layers
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for layer, expert in np.ndindex(layers, experts):
        top, left = layer * tall, expert
        extent = (left + 0.05, left + 0.95, top + 0.95 * tall, top + 0.05 * tall)
        image = _image(axes, share[layer, ..., expert], extent, experts)
    axes.set(xlim=(0, experts), ylim=(layers * tall, 0), xlabel="expert", ylabel="layer")
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(experts) + 0.5, range(experts))
    axes.set_yticks((np.arange(layers) + 0.5) * tall, range(layers))
    _finish(path, figure, image, "position")


def _draw_balance(
    path: pathlib.Path, step: np.ndarray, max_load: np.ndarray, entropy: np.ndarray
) -> None:
    """Draws the load over training, as the mean over layers that the log has."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    curves = (max_load, "largest load / mean load"), (entropy, "entropy / its maximum")
    for panel, (values, name) in zip(panels, curves):
        panel.axhline(1, color=_GREY, linewidth=0.8, linestyle="--")
        panel.plot(step, values, color=_LINE, linewidth=1.2)
        panel.set_title(f"{name} (1 is even)", loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    panels[1].set_xlabel("training step")
    figure.suptitle("Balance of experts, mean over layers")
    figure.savefig(path)


def _image(axes, share: np.ndarray, extent: tuple[float, ...], experts: int):
    """Draws one heatmap on the scale of all pictures: a quarter to four times the even share."""
    from matplotlib.colors import LogNorm

    relative = np.maximum(share * experts, 0.25)
    axes.set_facecolor(_GREY)
    scale = {"cmap": _COLORS, "norm": LogNorm(0.25, 4)}
    return axes.imshow(relative, extent=extent, aspect="auto", interpolation="nearest", **scale)


def _finish(path: pathlib.Path, figure, image, by: str) -> None:
    """Adds a title and a colour bar, and saves."""
    explained = f"shares sum to 1 over experts for each {by}; white is even"
    figure.suptitle(f"Use of experts by layer and {by}\n{explained}")
    shrink = min(0.8, 3 / figure.get_figheight())
    bar = figure.colorbar(image, ax=figure.axes, shrink=shrink, aspect=25, extend="both")
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["¼", "½", "1", "2", "4"])
    bar.ax.minorticks_off()
    bar.set_label("share / even share")
    figure.savefig(path)
