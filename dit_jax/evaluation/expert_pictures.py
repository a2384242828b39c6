"""Pictures of the use of experts."""

import pathlib

import numpy as np

# White is even, as is the middle of the scale; ColorBrewer's pair for all kinds of eyes.
_COLORS, _LINE, _GREY = "RdBu_r", "#2166ac", "#d1d5db"
STYLE = {
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


def draw_by_time(path: pathlib.Path, share: np.ndarray) -> None:
    """Draws shares [L, T, E]."""
    times = share.shape[1]
    ticks = {0: "0", times / 2: "0.5", times: "1"}
    _draw_panels(path, share, ticks, "time, from data (0) to noise (1)", "time")


def draw_by_class(path: pathlib.Path, share: np.ndarray, names: list[str]) -> None:
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
    fitting = range(1, 1 + max(1, int(15 / side)))
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


def draw_by_position(path: pathlib.Path, share: np.ndarray) -> None:
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


def draw_balance(
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
