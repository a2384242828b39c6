"""`python -m dit_jax`: sample from a run, see its experts, convert, upcycle, list the models."""

import pathlib
from typing import Literal

import tyro

from dit_jax import cli
from dit_jax.interop.commands import FromTorch, ToTorch


def sample(
    run: tyro.conf.Positional[str],
    labels: str,
    out: str = "grid.png",
    seed: int = 0,
    guidance: float | None = None,
) -> None:
    """Draws images of a run.

    Args:
      run: run folder, or one of its checkpoints.
      labels: classes, separated by commas: one image each.
      out: PNG to write.
      seed: seed of the noise.
      guidance: classifier-free guidance scale; the run's own by default.
    """
    import dit_jax
    from dit_jax.images import save_grid

    try:
        numbers = [int(label) for label in labels.split(",")]
    except ValueError as error:
        raise dit_jax.InputError(f"--labels '{labels}' are not numbers: try 3,3,7") from error
    images = dit_jax.sample(dit_jax.load(run), numbers, seed=seed, guidance=guidance)
    save_grid(pathlib.Path(out), images)
    print(f"{len(images)} images: {out}")


def convert(command: FromTorch | ToTorch) -> None:
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


def models() -> None:
    """Lists every preset with its size and the cost of one forward pass at 256 px."""
    from dit_jax.summary import print_presets

    print_presets()


def main() -> None:
    """Runs the command that is asked for."""
    cli.setup_logging()
    with cli.one_line_errors():
        tyro.extras.subcommand_cli_from_dict(
            {
                "convert": convert,
                "experts": experts,
                "models": models,
                "sample": sample,
                "upcycle": upcycle,
            },
            prog="python -m dit_jax",
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        )


if __name__ == "__main__":
    main()
