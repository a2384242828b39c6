"""The command line: configuration files, typed options, one-line errors."""

import contextlib
import dataclasses
import logging
import pathlib
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import rich
import rich.logging
import tyro

from dit_jax.diffusion import Sharing
from dit_jax.errors import DitJaxError, InputError
from dit_jax.experiment import Experiment
from dit_jax.parallel import hosts
from dit_jax.parallel.mesh import RECIPES, Parallel

_BROKEN_OFF = (
    "error: this process of several ends here. If the error above is a lost connection, another "
    "ended first, and its output says why; the same command goes on from the newest checkpoint"
)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints the errors a user can act on in one line, and exits: 2 for bad input, 1 otherwise.

    Ctrl-C is such a line too, with status 130.
    """
    try:
        yield
    except DitJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        hosts.leave(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        print("interrupted; a run goes on from its newest checkpoint", file=sys.stderr)
        hosts.leave(130)
    except Exception:
        if hosts.alone():
            raise
        traceback.print_exc()
        print(_BROKEN_OFF, file=sys.stderr)
        hosts.leave(1)


def load_config(path: str, kinds: tuple[type, ...] = (Experiment,)) -> Any:
    """Runs a configuration file and returns the `experiment` it defines.

    Args:
      path: the file.
      kinds: what the experiment may be.

    Raises:
      InputError: there is no such file, or it defines none of these kinds.
    """
    if not pathlib.Path(path).is_file():
        near = sorted(str(p) for p in pathlib.Path(path).parent.glob("*.py"))
        raise InputError(f"no configuration '{path}': {', '.join(near) or 'give a Python file'}")
    experiment = runpy.run_path(path).get("experiment")
    if not isinstance(experiment, kinds):
        names = " or ".join(f"`experiment = {kind.__name__}(...)`" for kind in kinds)
        raise InputError(f"'{path}' does not define {names}")
    return experiment


def parse_experiment(
    args: Sequence[str], default_config: str, kinds: tuple[type, ...] = (Experiment,)
) -> Any:
    """Reads `[CONFIG.py] [--parallel RECIPE] [--option value ...]` into an experiment.

    Raises:
      InputError: the configuration cannot be read, or there is no such recipe.
      SystemExit: status 2 for an unknown or ill-typed option, which is named with the nearest one.
    """
    config, rest = default_config, list(args)
    if rest and not rest[0].startswith("-"):
        config = rest.pop(0)
    experiment = load_config(config, kinds)
    recipe, rest = _take_recipe(rest)
    if recipe is not None:
        experiment = dataclasses.replace(experiment, parallel=recipe)
    return tyro.cli(
        type(experiment),
        default=experiment,
        args=rest,
        prog=f"train.py {config}",
        # Fields of the classes in the file are plain options, those of optional parts too.
        config=(tyro.conf.AvoidSubcommands,),
        description=(
            f"Options and defaults of {config}; classes are chosen in the file. --parallel "
            f"{{{','.join(RECIPES)}}} sets all of the mesh; sizes that follow change it."
        ),
    )


def _take_recipe(args: list[str]) -> tuple[Parallel | None, list[str]]:
    """Takes `--parallel NAME` out of the arguments."""
    joined = [arg.removeprefix("--parallel=") for arg in args if arg.startswith("--parallel=")]
    rest = [arg for arg in args if not arg.startswith("--parallel=")]
    if "--parallel" in rest:
        place = rest.index("--parallel")
        joined += rest[place + 1 : place + 2] or [""]
        del rest[place : place + 2]
    if not joined:
        return None, rest
    if joined[-1] not in RECIPES:
        raise InputError(f"no --parallel '{joined[-1]}': choose one of {', '.join(RECIPES)}")
    return RECIPES[joined[-1]], rest


def parse_sharing(text: str | None) -> Sharing | None:
    """Reads `5` as every fifth evaluation, and `0,3,9` as these.

    Raises:
      InputError: it is neither.
    """
    if text is None:
        return None
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(f"--sharing '{text}' are not numbers: try 5, or 0,3,9") from error
    single = len(numbers) == 1 and numbers != (0,)
    return Sharing(every=numbers[0]) if single else Sharing(steps=numbers)


def join_hosts() -> None:
    """Joins the run's other processes, if there are any; all but the main one then keep quiet."""
    hosts.start()
    if not hosts.is_main():
        logging.getLogger("dit_jax").setLevel(logging.ERROR)


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
