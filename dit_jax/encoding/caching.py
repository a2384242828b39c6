"""`python -m dit_jax cache-latents CONFIG OUT`."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import tyro

from dit_jax import cli
from dit_jax.data import Split
from dit_jax.encoding.cache import Cache
from dit_jax.encoding.writer import Written, write_cache
from dit_jax.parallel import hosts


@dataclasses.dataclass(frozen=True)
class Options:
    """Encodes a data set's images once for all, so that training on them needs no encoder.

    Data, autoencoder and readers are those of a configuration, whose options follow as for
    train.py: --data.path IMAGES, --latents.weights WEIGHTS, --data.flip to encode mirrored
    images too. The same command again goes on where it was stopped.

    Attributes:
      config: a configuration file.
      out: folder to write to; a split goes to its subfolder.
      split: which images.
      dtype: of the numbers that are stored; the half ones take half the room, and round.
      shard_size: records a file.
      batch_size: images at once on each device.
    """

    config: tyro.conf.Positional[str]
    out: tyro.conf.Positional[str]
    split: Split = "train"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    shard_size: int = 4096
    batch_size: int = 32


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
      InputError: as `write_cache`.
    """
    options, rest = tyro.cli(
        Options,
        args=list(args),
        prog="python -m dit_jax cache-latents",
        return_unknown_args=True,
    )
    experiment = cli.parse_experiment([options.config, *rest], options.config)
    cache = Cache(
        experiment.latents, experiment.data, options.split, options.dtype, options.shard_size
    )
    cli.join_hosts()
    written = write_cache(
        cache, options.out, batch_size=options.batch_size, loader=experiment.loader
    )
    if hosts.is_main():
        print(_report(written))


def _report(written: Written) -> str:
    if not written.records:
        return f"all {written.kept:,} records were there: {written.folder}"
    kept = f", {written.kept:,} were there" if written.kept else ""
    speed = f"{written.records / written.seconds:,.0f} images/s"
    return f"{written.records:,} records written ({speed}){kept}: {written.folder}"
