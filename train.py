"""Train a Diffusion Transformer: `python train.py [configs/NAME.py] [--option value ...]`.

The same command run again resumes. `--help` after a configuration lists its options.
`--compile-only` compiles the step for the devices at hand, says what it takes, and exits.
"""

import sys

import rich

from dit_jax import cli
from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.parallel import hosts
from dit_jax.training.reconstruction.experiment import DecoderExperiment


def main() -> None:
    """Trains the experiment of the command line, then evaluates it."""
    with cli.one_line_errors():
        args = [arg for arg in sys.argv[1:] if arg != "--compile-only"]
        kinds = (Experiment, DecoderExperiment)
        experiment = cli.parse_experiment(args, "configs/digits.py", kinds)
        cli.setup_logging()
        cli.join_hosts()
        if len(args) < len(sys.argv) - 1:
            if isinstance(experiment, DecoderExperiment):
                raise InputError("--compile-only compiles diffusion models: leave it out")
            from dit_jax.planning.command import compile_only

            return compile_only(experiment)
        from dit_jax.evaluation.evaluate import evaluate
        from dit_jax.paths import local_folder
        from dit_jax.training.loop import train, train_decoder

        if isinstance(experiment, DecoderExperiment):
            return train_decoder(experiment)
        run = train(experiment)
        if experiment.evaluation.samples:
            folder = local_folder(experiment.run.dir) / "evaluation"
            report = evaluate(run, folder, experiment.evaluation, mesh=experiment.parallel.mesh())
            if hosts.is_main():
                rich.print(report.table())
                print(f"samples, grid and metrics: {folder}")


if __name__ == "__main__":
    main()
