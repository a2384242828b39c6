"""`python -m dit_jax`: sample from a run, see its experts, convert, list the models."""

import pathlib

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
            {"convert": convert, "experts": experts, "models": models, "sample": sample},
            prog="python -m dit_jax",
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        )


if __name__ == "__main__":
    main()
