"""Which steps of a discrete process a sampler visits (Improved DDPM, arXiv 2102.09672)."""

import numpy as np

from dit_jax.errors import InputError


def respace(length: int, steps: int | str) -> np.ndarray:
    """Returns the kept indices of 0..length - 1, ascending.

    Args:
      length: number of steps of the full process.
      steps: how many to keep, evenly spread with both ends; or, in ADM's notation, 'a,b,c' for so
        many in each of equal sections, or 'ddimN' for N at a constant integer stride.

    Raises:
      InputError: there is no such spacing.
    """
    steps = str(steps)
    if steps.startswith("ddim") and steps[4:].isdigit():
        count = int(steps[4:])
        for stride in range(1, length + 1):
            kept = np.arange(0, length, stride)
            if len(kept) == count:
                return kept
        raise InputError(f"no integer stride visits {count} of {length} steps: try '{steps[4:]}'")
    counts = steps.split(",")
    if not all(count.strip().isdigit() and int(count) > 0 for count in counts):
        raise InputError(f"steps '{steps}' is not a number, 'a,b,c' or 'ddimN'")
    return _sections(length, [int(count) for count in counts])


def _sections(length: int, counts: list[int]) -> np.ndarray:
    size, extra = divmod(length, len(counts))
    kept: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        section = size + (i < extra)
        if count > section:
            raise InputError(f"cannot keep {count} of a section of {section} steps: keep fewer")
        stride = (section - 1) / (count - 1) if count > 1 else 1
        # The stride is summed and rounded (halves to even) as in the released code: k * stride
        # rounds otherwise for a few odd counts.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += section
    return np.array(kept)
