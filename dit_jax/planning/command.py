"""`python -m dit_jax plan CONFIG --topology v5p:4x4x4`, and `train.py --compile-only`."""

import dataclasses
import json
from collections.abc import Sequence

import tyro

from dit_jax import cli
from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.parallel import hosts
from dit_jax.planning.compile import compile_step
from dit_jax.planning.plan import Plan, make_plan
from dit_jax.planning.report import as_dict, print_plan
from dit_jax.planning.search import print_search, search
from dit_jax.planning.topology import Slice, find_slice, local_slice
from dit_jax.training.program import Program


@dataclasses.dataclass(frozen=True)
class Options:
    """Compiles a training step for TPUs that are not there, and says what it would take.

    Options of the configuration, such as --parallel.fsdp 64, follow as for train.py.

    Attributes:
      config: a configuration file.
      topology: the slice, such as v5e:4x4, v5p:4x4x4, v6e:2x4 or tpu7x:4x4x4.
      slices: number of such slices, joined by the data center's network.
      search: try meshes and remat policies, and rank them.
      compile: how many of the search's best are compiled.
      json: print JSON.
      hlo: file to write the compiled program's text to.
    """

    config: tyro.conf.Positional[str]
    topology: str
    slices: int = 1
    search: bool = False
    compile: int = 3
    json: bool = False
    hlo: str | None = None


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
      InputError: no such configuration or topology, or libtpu is missing.
      SystemExit: status 1 where the step does not fit.
    """
    options, rest = tyro.cli(
        Options,
        args=list(args),
        prog="python -m dit_jax plan",
        return_unknown_args=True,
    )
    experiment = cli.parse_experiment([options.config, *rest], options.config)
    where = find_slice(options.topology, options.slices)
    if options.search:
        print_search(search(experiment, where, options.compile), where, options.json)
        return
    _show(make_plan(experiment, where, _keeping(options.hlo)), where, options.json)


def compile_only(experiment: Experiment) -> None:
    """Compiles a run's step for the devices at hand, says what it takes, and trains nothing."""
    where = local_slice()
    _show(make_plan(experiment, where), where, as_json=False)


def _show(plan: Plan, where: Slice, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_dict(plan), indent=2))
    elif hosts.is_main():
        print_plan(plan, where)
    if plan.verdict and not plan.verdict.fits:
        raise SystemExit(1)


def _keeping(path: str | None):
    """The compiler, which also writes the program to a file."""

    def compile_and_write(program: Program):
        compiled = compile_step(program)
        if path:
            try:
                with open(path, "w") as file:
                    file.write(compiled.text)
            except OSError as error:
                raise InputError(f"--hlo: cannot write '{path}': {error.strerror}") from error
        return compiled

    return compile_and_write
