"""Where a run's numbers go: the terminal, a JSONL file and TensorBoard."""

import json
import logging
import os
import pathlib
import time

import rich.progress

from dit_jax.progress import Progress

Values = dict[str, float]


class RunLog:
    """Appends one JSON object a logged step to `log.jsonl`, and draws the progress."""

    def __init__(self, folder: pathlib.Path, start: int, steps: int, images_per_step: int):
        """Opens the log of a run that goes from `start` to `steps`."""
        from tensorboardX import SummaryWriter

        self._images_per_step = images_per_step
        self._steps = steps
        _drop_torn_line(folder / "log.jsonl")
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._mark = (time.perf_counter(), start)
        self._progress = Progress(
            "[progress.description]{task.description}",
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            "loss {task.fields[loss]}",
            "{task.fields[speed]} images/s",
            "ETA",
            rich.progress.TimeRemainingColumn(),
        )
        self._task = self._progress.add_task(
            "training", total=steps, completed=start, loss="-", speed="-"
        )
        self._progress.start()

    def images_per_second(self, step: int) -> float:
        """Speed since this was last asked."""
        (then, before), self._mark = self._mark, (time.perf_counter(), step)
        return (step - before) * self._images_per_step / (self._mark[0] - then)

    def record(self, step: int, values: Values) -> None:
        """Logs values of a step in the files."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def write(self, step: int, values: Values) -> None:
        """Logs the values of a training step everywhere."""
        self.record(step, values)
        text = {"loss": f"{values['loss']:.4f}", "speed": f"{values['images_per_second']:,.0f}"}
        self._progress.update(self._task, completed=step, **text)
        console = self._progress.console
        if not (console.is_terminal or console.is_jupyter):
            line = f"step {step} of {self._steps}  loss {text['loss']}  {text['speed']} images/s"
            logging.getLogger(__name__).info(line)

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step)

    def close(self) -> None:
        """Flushes and closes all of them."""
        self._progress.stop()
        self._file.close()
        self._board.close()


def _drop_torn_line(path: pathlib.Path) -> None:
    """Cuts off the half-written last line that a killed process may have left."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
