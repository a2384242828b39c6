"""`python -m dit_jax metrics SAMPLES.npz REFERENCE.npz`: two files compared, with no model."""

from collections.abc import Sequence

import rich.table

from dit_jax.errors import InputError
from dit_jax.metrics.features import FeatureSpace
from dit_jax.metrics.images import ImageFile, check_bytes
from dit_jax.metrics.measure import Measurement, possible_names


def compare(
    samples: str,
    reference: str | None,
    names: Sequence[str] | None,
    space: FeatureSpace,
    batch_size: int,
) -> rich.table.Table:
    """Measures a file of images against another one.

    Args:
      samples: .npz of images.
      reference: .npz of images, statistics, or both.
      names: what is measured; None for all that can be.
      space: what is seen in an image.
      batch_size: images at once on each device.

    Returns:
      What was measured, and of what.

    Raises:
      InputError: a file, a name or the network's weights do not serve.
    """
    files = [ImageFile.open(path) for path in (samples, reference) if path is not None]
    other = files[1] if reference else None
    if files[0].shape is not None:
        check_bytes(files[0])
    names = names or possible_names(space, files[0], other)
    if not names:
        raise InputError(
            f"nothing can be measured of '{samples}' so: give images, at least 2, and a reference"
        )
    found = Measurement(names, space, other, batch_size)(files[0])
    table = rich.table.Table(show_header=False)
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}", style="bold")
    for title, file in zip(("samples", "reference"), files):
        shape = "statistics" if file.shape is None else "x".join(map(str, file.shape))
        table.add_row(title, f"{file.path}: {shape}, SHA-256 {file.checksum()[:12]}")
    table.add_row("features", space.description)
    return table
