"""`python -m dit_jax`: sample, convert, cache-latents, upcycle, plan, and more: `--help`."""

import pathlib
import sys
from typing import Literal

import rich
import tyro

from dit_jax import cli
from dit_jax.interop.commands import RAE, FromTorch, ToTorch
from dit_jax.metrics.features import FeaturesName, find_features
from dit_jax.parallel.mesh import Parallel


def sample(
    run: tyro.conf.Positional[str],
    labels: str,
    out: str = "grid.png",
    seed: int = 0,
    guidance: float | None = None,
    weak: str | None = None,
    sharing: str | None = None,
) -> None:
    """Draws images of a run.

    Args:
      run: run folder, or one of its checkpoints.
      labels: classes, separated by commas: one image each.
      out: PNG to write.
      seed: seed of the noise.
      guidance: guidance scale, classifier-free but with `weak`; the run's own by default.
      weak: a worse run, for autoguidance.
      sharing: when the condition encoder of a DDT or DiT-DH runs: 5 for every fifth evaluation,
        0,3,9 for these, 1 for all; the run's own by default.
    """
    import dit_jax
    from dit_jax.images import save_grid
    from dit_jax.parallel import hosts

    try:
        numbers = [int(label) for label in labels.split(",")]
    except ValueError as error:
        raise dit_jax.InputError(f"--labels '{labels}' are not numbers: try 3,3,7") from error
    shared = cli.parse_sharing(sharing)
    cli.join_hosts()
    worse = weak and dit_jax.load(weak)
    options = {"seed": seed, "guidance": guidance, "weak": worse, "sharing": shared}
    images = dit_jax.sample(dit_jax.load(run), numbers, **options)
    if hosts.is_main():
        save_grid(pathlib.Path(out), images)
        print(f"{len(images)} images: {out}")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
def convert(command: FromTorch | ToTorch | RAE) -> None:
    """Converts PyTorch checkpoints, in and out."""
    for line in command():
        print(line)


def upcycle(
    run: tyro.conf.Positional[str],
    out: tyro.conf.Positional[str],
    method: Literal["copy", "noise", "taylor"],
    experts: int | None = None,
    top_k: int | None = None,
    every: int = 1,
    noise: float | None = None,
    shared: float | None = None,
    batches: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> None:
    """Makes a mixture of experts of a trained dense DiT, for --init-from to train on.

    Args:
      run: run folder, or one of its checkpoints.
      out: folder to make.
      method: copy: every expert is the dense MLP, and the function stays as it is. noise: copies
        with noise. taylor: the dense MLP's neurons, divided among a shared expert and the others.
      experts: experts that a router chooses between; 8 by default, 12 for taylor.
      top_k: experts a token; 2 by default.
      every: 1 for experts in all blocks, 2 for every second one.
      noise: standard deviation over that of the weights; 0.1 by default (noise).
      shared: share of the neurons that every token passes; 0.25 by default (taylor).
      batches: batches of training data to find the important neurons on; 8 by default (taylor).
      batch_size: images in each; 64 by default (taylor).
      seed: seed of all that is random.
    """
    from dit_jax import upcycling

    options = {"noise": noise, "shared": shared, "batches": batches, "batch_size": batch_size}
    chosen = upcycling.make_method(method, experts=experts, top_k=top_k, **options)
    for line in upcycling.upcycle(run, out, chosen, every=every, seed=seed):
        print(line)
    print(f"--init-from {out} trains it on")


def experts(
    run: tyro.conf.Positional[str],
    out: str | None = None,
    samples: int = 256,
    times: int = 20,
    batch_size: int = 64,
    seed: int = 0,
) -> None:
    """Draws which experts a run uses by time, class and position, and how evenly.

    Args:
      run: run folder, or one of its checkpoints.
      out: folder to make; RUN/experts by default.
      samples: real images to look at, held-out ones where there are any.
      times: noise levels of each image.
      batch_size: images at once.
      seed: which images, and their noise.
    """
    from dit_jax.evaluation.experts import draw_experts

    for line in draw_experts(run, out, samples, times, batch_size, seed):
        print(line)


def share_steps(
    run: tyro.conf.Positional[str],
    budget: int,
    samples: int = 8,
    seed: int = 0,
    guidance: float | None = None,
) -> None:
    """Finds at which evaluations the condition encoder of a DDT or DiT-DH should run.

    By the dynamic programme of arXiv 2504.05741, for the run's own solver.

    Args:
      run: run folder, or one of its checkpoints.
      budget: how many evaluations the encoder runs at.
      samples: samples to look at.
      seed: seed of the noise.
      guidance: classifier-free guidance scale; the run's own by default.
    """
    import dit_jax
    from dit_jax.sharing import find_steps

    for line in find_steps(dit_jax.load(run), budget, samples, seed, guidance):
        print(line)


def inspect(checkpoint: tyro.conf.Positional[str], json: bool = False) -> None:
    """Shows what a checkpoint holds: its trees, sizes, shardings and configuration.

    Only metadata is read, whatever the size of the arrays.

    Args:
      checkpoint: run folder (its newest checkpoint), one of its checkpoints, or converted weights.
      json: print JSON.
    """
    from dit_jax.storage.contents import read_contents
    from dit_jax.storage.report import print_contents

    print_contents(read_contents(checkpoint), json)


def reshard(
    checkpoint: tyro.conf.Positional[str],
    out: tyro.conf.Positional[str],
    items: tuple[str, ...] = (),
    parallel: Parallel = Parallel(),  # noqa: B008
) -> None:
    """Writes a checkpoint anew, in parts that suit another mesh, or without some of its items.

    Any mesh can restore any checkpoint; this makes it read whole parts of the files. The mesh's
    devices need not be there.

    Args:
      checkpoint: run folder (its newest checkpoint), one of its checkpoints, or converted weights.
      out: run folder to make.
      items: what to keep, such as `params ema_0.9999`; all by default.
      parallel: the mesh that will read it; one device by default.
    """
    from dit_jax.storage.rewriting import reshard

    for line in reshard(checkpoint, out, parallel, items):
        print(line)


def metrics(
    samples: tyro.conf.Positional[str],
    reference: tyro.conf.Positional[str | None] = None,
    metrics: str | None = None,
    features: FeaturesName = "inception",
    weights: str | None = None,
    batch_size: int = 64,
) -> None:
    """Measures a file of images against another one, with no model.

    FID, sFID, Inception Score, precision and recall are by the protocol of ADM's evaluator.

    Args:
      samples: .npz of uint8 images [N, H, W, 3].
      reference: .npz of images, statistics, or both, as ADM publishes them.
      metrics: some of fid, sfid, is, pr and kid (of dinov2's features fd, pr and kid), separated by
        commas; all that the files allow by default.
      features: network and resizing.
      weights: folder of the network's converted weights, where it is another one.
      batch_size: images at once on each device.
    """
    cli.join_hosts()
    from dit_jax.metrics.command import compare
    from dit_jax.parallel import hosts

    names = metrics.split(",") if metrics else None
    table = compare(samples, reference, names, find_features(features, weights), batch_size)
    if hosts.is_main():
        rich.print(table)


def plan() -> None:
    """Compiles a training step for TPUs that are not there, and says what it would take."""
    # Its options are followed by those of a configuration, which `main` gives it as they are.


def cache_latents() -> None:
    """Encodes a data set's images once for all, so that training on them needs no encoder."""
    # As for `plan`.


def latent_stats() -> None:
    """Measures mean and variance of a data set's latents, which RAE normalises them by."""
    # As for `plan`.


def models() -> None:
    """Lists every preset with its size and the cost of one forward pass at 256 px."""
    from dit_jax.sizes import print_presets

    print_presets()


def main() -> None:
    """Runs the command that is asked for."""
    cli.setup_logging()
    with cli.one_line_errors():
        if sys.argv[1:2] == ["plan"]:
            from dit_jax.planning import command

            return command.main(sys.argv[2:])
        if sys.argv[1:2] == ["cache-latents"]:
            from dit_jax.encoding import caching

            return caching.main(sys.argv[2:])
        if sys.argv[1:2] == ["latent-stats"]:
            from dit_jax.encoding import statistics

            return statistics.main(sys.argv[2:])
        tyro.extras.subcommand_cli_from_dict(
            {
                "cache-latents": cache_latents,
                "convert": convert,
                "experts": experts,
                "inspect": inspect,
                "latent-stats": latent_stats,
                "metrics": metrics,
                "models": models,
                "plan": plan,
                "reshard": reshard,
                "sample": sample,
                "share-steps": share_steps,
                "upcycle": upcycle,
            },
            prog="python -m dit_jax",
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )


if __name__ == "__main__":
    main()
