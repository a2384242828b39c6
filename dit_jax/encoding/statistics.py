"""`python -m dit_jax latent-stats CONFIG OUT`: what a data set's latents are like."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dit_jax import cli
from dit_jax.data import Loader, Source, Split, batches_in_order
from dit_jax.errors import InputError
from dit_jax.latents import RAE
from dit_jax.latents.rae import Normalization
from dit_jax.latents.rae.moments import Moments
from dit_jax.parallel import hosts
from dit_jax.parallel.local import LocalDevices, progress_bar, share_of
from dit_jax.storage.weights import refuse_weights, save_weights


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures mean and variance of a data set's latents, at each position and of each channel.

    Data, encoder and readers are those of a configuration whose latents are an RAE's, whose
    options follow as for train.py: --data.path IMAGES, --latents.encoder-weights WEIGHTS. The
    folder is what --latents.statistics then names.

    Attributes:
      config: a configuration file.
      out: folder to make.
      split: which images.
      batch_size: images at once on each device.
    """

    config: tyro.conf.Positional[str]
    out: tyro.conf.Positional[str]
    split: Split = "train"
    batch_size: int = 32


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
      InputError: the configuration, its data or its encoder do not serve, or `out` is there.
    """
    options, rest = tyro.cli(
        Options, args=list(args), prog="python -m dit_jax latent-stats", return_unknown_args=True
    )
    experiment = cli.parse_experiment([options.config, *rest], options.config)
    rae = experiment.latents
    if not isinstance(rae, RAE):
        raise InputError(
            f"'{options.config}' has latents of {type(rae).__name__}: give a configuration with an "
            f"RAE that encodes images"
        )
    cli.join_hosts()
    settings = {"batch_size": options.batch_size, "loader": experiment.loader}
    found = write_statistics(rae, experiment.data, options.out, options.split, **settings)
    if hosts.is_main():
        rms = np.sqrt(found.variance.mean())
        print(f"{found.count:,} images, deviation {rms:.3f} on average: {options.out}")


def write_statistics(
    rae: RAE,
    source: Source,
    out: str,
    split: Split = "train",
    *,
    batch_size: int = 32,
    loader: Loader = Loader(),  # noqa: B008
) -> Moments:
    """Writes `latent_moments` as the folder `out`, which `RAE.statistics` names, and returns them.

    Raises:
      InputError: the folder has weights already, or see `latent_moments`.
    """
    refuse_weights(out)
    found = latent_moments(rae, source, split, batch_size=batch_size, loader=loader)
    params = {"mean": found.mean, "variance": found.variance}
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    save_weights(out, Normalization(), found.mean.shape, params)
    return found


def latent_moments(
    rae: RAE,
    source: Source,
    split: Split = "train",
    *,
    batch_size: int = 32,
    loader: Loader = Loader(),  # noqa: B008
) -> Moments:
    """Moments of the encoder's tokens over all images, each process reading its share.

    Args:
      rae: the encoder; statistics that it names already play no part.
      source: the images.
      split: which of them.
      batch_size: images at once on each device.
      loader: how they are read.

    Returns:
      Moments of shape [h, w, C], the same on all processes.

    Raises:
      InputError: there are no images, one cannot be read, or the encoder's weights are not there.
    """
    devices = LocalDevices(batch_size)
    rae, records = dataclasses.replace(rae, statistics=None), source.open(split)
    measure = devices.compile(functools.partial(_batch_moments, rae), rae.load(), batched=False)
    mine = share_of(range(len(records)))
    spans = devices.cut(range(mine[0], mine[-1] + 1)) if mine else []
    batches = batches_in_order(records, spans, num_classes=source.num_classes, loader=loader)
    found = Moments.none(rae.shape(source.shape))
    with contextlib.closing(batches), progress_bar() as progress:
        task = progress.add_task("encoding", total=len(mine))
        for batch in batches:
            mean, squares = (np.asarray(x, np.float64) for x in measure(batch["image"]))
            found = found.merge(Moments(len(batch["image"]), mean, squares))
            progress.advance(task, len(batch["image"]))
    return functools.reduce(Moments.merge, _of_all_processes(found))


def _batch_moments(rae: RAE, params: Any, images: jax.Array, count: jax.Array) -> Any:
    """Mean and summed squared deviations [h, w, C] over the first `count` images."""
    tokens = rae.store(params, images)
    real = (jnp.arange(len(tokens)) < count)[:, None, None, None]
    mean = jnp.where(real, tokens, 0).sum(axis=0) / count
    return mean, jnp.where(real, jnp.square(tokens - mean), 0).sum(axis=0)


def _of_all_processes(found: Moments) -> list[Moments]:
    """What each process found."""
    mine = np.stack([np.full_like(found.mean, found.count), found.mean, found.squares])
    return [Moments(int(c.flat[0]), m, s) for c, m, s in hosts.gather(mine)]
