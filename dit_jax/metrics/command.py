"""`python -m dit_jax metrics SAMPLES.npz REFERENCE.npz`: two files compared, with no model."""

import rich.table

from dit_jax.metrics.features import FeatureSpace
from dit_jax.metrics.images import ImageFile
from dit_jax.metrics.measure import check_names, measure


def compare(
    samples: str,
    reference: str | None,
    names: tuple[str, ...],
    space: FeatureSpace,
    batch_size: int,
) -> rich.table.Table:
    """Measures a file of images against another one.

    Args:
      samples: .npz of images.
      reference: .npz of images, statistics, or both.
      names: what is measured.
      space: what is seen in an image.
      batch_size: images at once on each device.

    Returns:
      What was measured, and of what.

    Raises:
      InputError: a file, a name or the network's weights do not serve.
    """
    check_names(names, space, reference)
    files = [ImageFile.open(path) for path in (samples, reference) if path is not None]
    found = measure(files[0], files[1] if reference else None, names, space, batch_size)
    table = rich.table.Table(show_header=False)
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}", style="bold")
    for title, file in zip(("samples", "reference"), files):
        shape = "statistics" if file.shape is None else "x".join(map(str, file.shape))
        table.add_row(title, f"{file.path}: {shape}, SHA-256 {file.checksum()[:12]}")
    table.add_row("features", space.description)
    return table
