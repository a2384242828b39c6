"""Evaluate a run: `python evaluate.py RUN [--num-samples N]`."""

import dataclasses
import pathlib

import rich
import tyro

from dit_jax import cli


def main(
    run: tyro.conf.Positional[str],
    num_samples: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    guidance: float | None = None,
    out: str | None = None,
) -> None:
    """Generates samples from a run, writes them as npz and grid, and prints metrics.

    Args:
      run: run folder, or one of its checkpoints.
      num_samples: how many images; as the run's configuration says by default.
      batch_size: images generated at once, over all devices.
      seed: seed of the samples.
      guidance: classifier-free guidance scale; 1 is none.
      out: where to write; RUN/evaluation by default.
    """
    with cli.one_line_errors():
        cli.setup_logging()
        from dit_jax.evaluation.evaluate import evaluate
        from dit_jax.run import load

        loaded = load(run)
        changes = {"samples": num_samples, "batch_size": batch_size, "seed": seed}
        options = dataclasses.replace(
            loaded.experiment.evaluation, **{k: v for k, v in changes.items() if v is not None}
        )
        folder = pathlib.Path(out or run) / ("" if out else "evaluation")
        rich.print(evaluate(loaded, folder, options, guidance).table())
        print(f"samples, grid and metrics: {folder}")


if __name__ == "__main__":
    tyro.cli(main)
