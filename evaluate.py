"""Evaluate a run: `python evaluate.py RUN [--num-samples N]`."""

import dataclasses
import pathlib
from typing import Literal

import rich
import tyro

from dit_jax import cli
from dit_jax.metrics.features import FeaturesName, find_features
from dit_jax.parallel import hosts


def main(
    run: tyro.conf.Positional[str],
    num_samples: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    labels: Literal["balanced", "random"] | None = None,
    metrics: str | None = None,
    reference: str | None = None,
    features: FeaturesName | None = None,
    guidance: float | None = None,
    weak: str | None = None,
    sharing: str | None = None,
    out: str | None = None,
) -> None:
    """Generates samples from a run, writes them as npz and grid, and prints metrics.

    Args:
      run: run folder, or one of its checkpoints.
      num_samples: how many images; as the run's configuration says by default.
      batch_size: images generated at once, over all devices.
      seed: seed of the samples.
      labels: classes in turn, or drawn at random.
      metrics: some of fid, sfid, is, pr and kid (of dinov2's features fd, pr and kid), separated by
        commas.
      reference: .npz file that they compare with, of images or statistics, as ADM publishes them.
      features: network and resizing for them.
      guidance: guidance scale, classifier-free but with `weak`; 1 is none.
      weak: a worse run, for autoguidance.
      sharing: when the condition encoder of a DDT or DiT-DH runs: 5 for every fifth evaluation,
        0,3,9 for these, 1 for all.
      out: where to write; RUN/evaluation by default.
    """
    with cli.one_line_errors():
        cli.setup_logging()
        cli.join_hosts()
        from dit_jax.evaluation.evaluate import evaluate
        from dit_jax.paths import local_folder
        from dit_jax.run import load

        loaded = load(run)
        changes = {"samples": num_samples, "batch_size": batch_size, "seed": seed}
        changes |= {"labels": labels, "reference": reference}
        changes["metrics"] = None if metrics is None else tuple(metrics.split(","))
        changes["features"] = features and find_features(features)
        options = dataclasses.replace(
            loaded.experiment.evaluation, **{k: v for k, v in changes.items() if v is not None}
        )
        folder = pathlib.Path(out) if out else local_folder(run) / "evaluation"
        worse, shared = weak and load(weak), cli.parse_sharing(sharing)
        report = evaluate(loaded, folder, options, guidance, shared, worse)
        if hosts.is_main():
            rich.print(report.table())
            print(f"samples, grid and metrics: {folder}")


if __name__ == "__main__":
    tyro.cli(main)
