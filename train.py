"""Train a Diffusion Transformer: `python train.py [configs/NAME.py] [--option value ...]`.

The same command run again resumes. `--help` after a configuration lists its options.
"""

import pathlib
import sys

import rich

from dit_jax import cli


def main() -> None:
    """Trains the experiment of the command line, then evaluates it."""
    with cli.one_line_errors():
        experiment = cli.parse_experiment(sys.argv[1:], "configs/digits.py")
        cli.setup_logging()
        from dit_jax.evaluation.evaluate import evaluate
        from dit_jax.training.loop import train

        run = train(experiment)
        if experiment.evaluation.samples:
            folder = pathlib.Path(experiment.run.dir).expanduser() / "evaluation"
            rich.print(evaluate(run, folder, experiment.evaluation).table())
            print(f"samples, grid and metrics: {folder}")


if __name__ == "__main__":
    main()
