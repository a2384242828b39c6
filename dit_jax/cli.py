"""The command line: configuration files, typed options, one-line errors."""

import contextlib
import logging
import pathlib
import runpy
import sys
from collections.abc import Iterator, Sequence

import rich
import rich.logging
import tyro

from dit_jax.errors import DitJaxError, InputError
from dit_jax.experiment import Experiment


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints the errors a user can act on in one line, and exits: 2 for bad input, 1 otherwise."""
    try:
        yield
    except DitJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from error


def load_config(path: str) -> Experiment:
    """Runs a configuration file and returns the `experiment` it defines.

    Raises:
      InputError: there is no such file, or it defines none.
    """
    if not pathlib.Path(path).is_file():
        near = sorted(str(p) for p in pathlib.Path(path).parent.glob("*.py"))
        raise InputError(f"no configuration '{path}': {', '.join(near) or 'give a Python file'}")
    experiment = runpy.run_path(path).get("experiment")
    if not isinstance(experiment, Experiment):
        raise InputError(f"'{path}' does not define `experiment = Experiment(...)`")
    return experiment


def parse_experiment(args: Sequence[str], default_config: str) -> Experiment:
    """Reads `[CONFIG.py] [--option value ...]` into an experiment.

    Raises:
      InputError: the configuration cannot be read.
      SystemExit: status 2 for an unknown or ill-typed option, which is named with the nearest one.
    """
    config, rest = default_config, list(args)
    if rest and not rest[0].startswith("-"):
        config = rest.pop(0)
    return tyro.cli(
        Experiment,
        default=load_config(config),
        args=rest,
        prog=f"train.py {config}",
        description=f"Options and defaults of {config}; classes are chosen in the file.",
    )


def setup_logging() -> None:
    """Prints dit_jax's own log lines, above a progress bar, and keeps chatty libraries silent."""
    for name in ("orbax", "absl", "jax", "grain"):
        # What goes wrong in their threads is raised again in ours, and reported in one line.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    console = rich.get_console()
    handler = logging.StreamHandler(sys.stdout)  # Unlike rich, it does not wrap lines in a file.
    if console.is_terminal:
        handler = rich.logging.RichHandler(
            console=console, show_path=False, show_time=False, show_level=False
        )
    logger = logging.getLogger("dit_jax")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
