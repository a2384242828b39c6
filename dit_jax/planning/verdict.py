"""Whether a step fits into a device's memory, and what would make it fit."""

import dataclasses

from dit_jax.experiment import Experiment
from dit_jax.planning.topology import GIB

_LESS = {"none": "dots", "dots": "full"}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
      fits: whether there is room.
      bytes: how much is left over, or missing (negative).
      advice: options that would help, the best first; none where it fits.
      exact: whether no more than that is missing; a compiler that gives up names temporaries alone.
    """

    fits: bool
    bytes: int
    advice: tuple[str, ...]
    exact: bool = True

    def __str__(self):
        room = f"{abs(self.bytes) / GIB:.2f} GiB"
        if self.fits:
            return f"fits, with {room} a device to spare"
        least = "" if self.exact else "at least "
        return f"does not fit, by {least}{room} a device: try {', or '.join(self.advice)}"


def judge(
    experiment: Experiment, mesh: dict[str, int], needed: int, available: int, state: int
) -> Verdict:
    """Compares what a step needs with what a device has.

    Args:
      experiment: what is trained.
      mesh: sizes of the mesh's axes.
      needed: bytes of a device that the step takes, as far as is known.
      available: bytes that a device has.
      state: bytes of the training state on a device.
    """
    if needed <= available:
        return Verdict(True, available - needed, ())
    return Verdict(False, available - needed, _advice(experiment, mesh, needed, available, state))


def _advice(
    experiment: Experiment, mesh: dict[str, int], needed: int, available: int, state: int
) -> tuple[str, ...]:
    training, copies = experiment.training, mesh["data"]
    divide = []
    if copies > 1:
        ways = mesh["fsdp"] * copies
        divide = [
            f"--parallel.data 1 --parallel.fsdp {ways} (one copy of the parameters, not {copies})"
        ]
    inside = []
    if less := _LESS.get(getattr(experiment.model, "remat", None)):
        inside.append(f"--model.remat {less} (recompute more)")
    rows = training.batch_size // (mesh["data"] * mesh["fsdp"] * mesh["expert"])
    parts = training.accumulation
    # Parts that divide a device's rows, and take away what is too much if activations shrink so.
    shrink = max(needed - state, 1) / max(available - state, 1)
    finer = [n for n in range(2 * parts, rows + 1, parts) if rows % n == 0]
    if finer and available > state:
        enough = next((n for n in finer if n >= parts * shrink), finer[-1])
        inside.append(f"--training.accumulation {enough} (activations of {rows // enough} images)")
    elif rows > 1 and available > state:
        inside.append(f"--training.batch-size {training.batch_size // 2}")
    more = ["more chips, or chips with more memory"]
    first = divide + inside if state > available / 2 else inside + divide
    return tuple(first) or tuple(more)
