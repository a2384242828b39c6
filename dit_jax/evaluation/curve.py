"""How the measures of a run went while it trained."""

import json
import pathlib
from collections.abc import Sequence


def draw_curve(log: pathlib.Path, names: Sequence[str], path: pathlib.Path) -> None:
    """Draws measures over steps, each in axes of its own.

    Args:
      log: a run's `log.jsonl`.
      names: what to draw.
      path: PNG to write.
    """
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(5, 1 + 1.6 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names):
        # A run that was resumed may have measured a step twice.
        measured = {line["step"]: line[name] for line in lines if name in line}
        axes.plot(*zip(*sorted(measured.items())), ".-", color="#2166ac")
        axes.set_ylabel(name.replace("_", " "))
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
