"""How a block or a command of the documentation is proved."""

import functools
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib
import types
from typing import Any

import pytest
import tyro

from dit_jax import cli
from dit_jax.data import ArrayRecords
from dit_jax.encoding import caching, statistics
from dit_jax.planning import command as planning
from tests.docs import tables
from tests.docs.blocks import ROOT, Block, Command, commands_of
from tests.docs.workspace import KINDS, check, run, shrunk

_OPTIONS = {
    "plan": planning.Options,
    "cache-latents": caching.Options,
    "latent-stats": statistics.Options,
}


class Page:
    """A page's blocks, proved one after another in the current folder.

    Attributes:
      slow: whether commands that take long are run too.
    """

    def __init__(self, slow: bool):
        self.slow = slow
        self._namespace: dict[str, Any] = {"__name__": "__page__"}

    def prove(self, block: Block) -> None:
        """Runs a block, or does with it what the tables say.

        Raises:
          AssertionError: it is of an unknown kind, or does not do what it should.
        """
        if block.language == "python":
            self._python(block)
        elif block.language in ("", "bash", "console"):
            for command in commands_of(block):
                self._command(command)
        elif block.language not in tables.SHOWN:
            raise AssertionError(
                f"a block of unknown kind '{block.language}': python, bash, or one of "
                f"{', '.join(tables.SHOWN)}"
            )

    def _python(self, block: Block) -> None:
        # With the page's own lines in tracebacks.
        code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
        if block.title is None:
            if not self._waits(block.text):
                exec(code, self._namespace)
            return
        path = pathlib.Path(block.title)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        if len(path.parts) == 1:
            check(cli.load_config(block.title, KINDS))

    def _command(self, command: Command) -> None:
        words = list(command.words)
        if command.program == "make":
            _check_targets(words[1:])
        elif command.program == "pip":
            _check_packages(words[1:])
        elif command.program == "python":
            self._our_own(command, words[1:])
        elif command.program not in tables.FOREIGN:
            raise AssertionError(f"'{command.program}' is in no table of tests/docs/tables.py")

    def _waits(self, text: str) -> bool:
        """Whether something is left to the slow tests."""
        return not self.slow and any(key in text for key in tables.SLOW)

    def _our_own(self, command: Command, args: list[str]) -> None:
        text = " ".join((*command.variables, *command.words)) + " "
        reasons = [key for key in tables.PARSED if key in text]
        runs = not reasons and not self._waits(text)
        if args[0] == "-c":
            compile(args[1], "-c", "exec")
            assert reasons, "say in the tables why this is not run"
        elif args[:2] == ["-m", "pytest"]:
            assert pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *args[2:]]) == 0
        elif args[:2] == ["-m", "dit_jax"]:
            (_run_tool if runs else _parse_tool)(args[2:])
        elif args[0] == "train.py":
            (_run_training if runs else _parse_training)(args[1:])
        elif args[0] == "evaluate.py":
            (_run_evaluation if runs else _parse_evaluation)(args[1:])
        else:
            raise AssertionError(f"python {args[0]}: no proof is known for it")


def _run_training(args: list[str]) -> None:
    flags = [arg for arg in args if arg == "--help"]
    run("train.py", args if flags else shrunk(args))


def _parse_training(args: list[str]) -> None:
    args = [arg for arg in args if arg != "--compile-only"]
    _check_where_possible(cli.parse_experiment(args, "configs/digits.py", KINDS))


def _check_where_possible(experiment: Any) -> None:
    # Other sources are asked for their classes, and are not there.
    if isinstance(experiment.data, ArrayRecords):
        check(experiment)


def _run_evaluation(args: list[str]) -> None:
    run("evaluate.py", [*_at_hand(args), "--num-samples", "8", "--batch-size", "8"])


def _parse_evaluation(args: list[str]) -> None:
    with _nothing_done():
        run("evaluate.py", args)


def _run_tool(args: list[str]) -> None:
    if args[0] in _OPTIONS:
        options, rest = tyro.cli(_OPTIONS[args[0]], args=args[1:], return_unknown_args=True)
        args = [*args, *shrunk([options.config, *rest])[1 + len(rest) :]]
    run("dit_jax", _at_hand(args))


def _parse_tool(args: list[str]) -> None:
    if args[0] not in _OPTIONS:
        with _nothing_done():
            run("dit_jax", args)
        return
    options, rest = tyro.cli(_OPTIONS[args[0]], args=args[1:], return_unknown_args=True)
    _check_where_possible(cli.parse_experiment([options.config, *rest], options.config))


def _at_hand(args: list[str]) -> list[str]:
    """Arguments in which what a shell would compute is computed, and steps are those there are."""
    return [_newest(_computed(arg)) for arg in args]


def _computed(arg: str) -> str:
    if not arg.startswith("$("):
        return arg
    shell = ["bash", "-c", f'printf %s "{arg}"']
    python = str(pathlib.Path(sys.executable).parent)
    path = {"PATH": f"{python}:/usr/bin:/bin"}
    return subprocess.run(shell, capture_output=True, text=True, check=True, env=path).stdout


def _newest(arg: str) -> str:
    folder = re.fullmatch(r"(.*/checkpoints)/\d+", arg)
    if not folder:
        return arg
    return str(max(pathlib.Path(folder[1]).iterdir(), key=lambda step: int(step.name)))


class _nothing_done(pytest.MonkeyPatch):
    """While it lasts, command lines are parsed by their own parsers and nothing is called."""

    def __enter__(self) -> None:
        cli_of, of_dict = tyro.cli, tyro.extras.subcommand_cli_from_dict
        stub = lambda f: f if inspect.isclass(f) else _idle(f)  # noqa: E731
        self.setattr(tyro, "cli", lambda f, *a, **kw: cli_of(stub(f), *a, **kw))
        self.setattr(
            tyro.extras,
            "subcommand_cli_from_dict",
            lambda commands, **kw: of_dict({k: _idle(f) for k, f in commands.items()}, **kw),
        )

    def __exit__(self, *_: Any) -> None:
        self.undo()


def _idle(function: types.FunctionType) -> Any:
    return functools.wraps(function)(lambda *args, **kwargs: None)


def _check_targets(names: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(names) <= targets, f"make {set(names) - targets}: no such target"


def _check_packages(args: list[str]) -> None:
    assert args[0] == "install", f"pip {args[0]}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = (ROOT / "requirements.txt").read_text().split() + sum(extras.values(), [])
    known = tables.PACKAGES | {re.split(r"[\[<>=~!]", line)[0] for line in listed}
    for word in (arg for arg in args[1:] if not arg.startswith("-")):
        name, _, chosen = word.rstrip("]").partition("[")
        if name.endswith(".txt"):
            assert (ROOT / name).exists(), f"no {name}"
        elif name == ".":
            unknown = set(filter(None, chosen.split(","))) - set(extras)
            assert not unknown, f"no extras {unknown}"
        else:
            assert re.split(r"[<>=~!]", name)[0] in known, f"pip install {name}: in no list"
