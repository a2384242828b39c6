"""What a process looks at images with: its own devices, so that processes need not keep step."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import rich.progress

from dit_jax.errors import InputError
from dit_jax.parallel import hosts
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, place, use_layout
from dit_jax.progress import Progress


class LocalDevices:
    """Runs a function of batches of images on this process's devices.

    Attributes:
      rows: images of a whole batch.
    """

    def __init__(self, batch_size: int):
        """Takes the devices.

        Args:
          batch_size: images at once on each of them.

        Raises:
          InputError: that is none.
        """
        if batch_size < 1:
            raise InputError(f"--batch-size {batch_size}: it must be at least 1")
        self._layout = Layout(Parallel().mesh(jax.local_devices()))
        self.rows = batch_size * self._layout.ways("batch")

    def compile(self, function: Callable[..., Any], params: Any, *, batched: bool) -> Callable:
        """Compiles `function(params, images, count)`, of images [rows, H, W, C], once.

        Args:
          function: what to run; only the first `count` images count, the others pad.
          params: its parameters.
          batched: the results have a row for each image, and stay where that is.

        Returns:
          A function of at most `rows` images, on the host.
        """

        def run(params: Any, images: jax.Array, count: jax.Array) -> Any:
            with use_layout(self._layout):
                return function(params, images, count)

        results = self._layout.batch if batched else self._layout.replicated
        compiled = jax.jit(run, out_shardings=results)
        params = place(params, self._layout.replicated)

        def on_devices(images: np.ndarray) -> Any:
            count = len(images)
            images = np.pad(images, [(0, self.rows - count), (0, 0), (0, 0), (0, 0)], "edge")
            return compiled(params, place(images, self._layout.batch), count)

        return on_devices

    def cut(self, numbers: range) -> list[range]:
        """Cuts consecutive records into batches of at most `rows`."""
        return [numbers[i : i + self.rows] for i in range(0, len(numbers), self.rows)]


def share_of(numbers: Sequence[int]) -> list[int]:
    """The part of some numbers that falls to this process, consecutive ones."""
    return np.array_split(numbers, jax.process_count())[jax.process_index()].tolist()


def progress_bar() -> Progress:
    """A bar of images looked at, which the first process shows."""
    return Progress(
        "[progress.description]{task.description}",
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        "images of this process, ETA" if not hosts.alone() else "images, ETA",
        rich.progress.TimeRemainingColumn(),
        disable=not hosts.is_main(),
    )
