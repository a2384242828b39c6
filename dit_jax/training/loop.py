"""The training loop: an experiment in, a run folder out."""

import logging
import math
import signal
import threading
from typing import Any

import jax

from dit_jax.errors import TrainingError
from dit_jax.experiment import Experiment
from dit_jax.flops import PEAK_FLOPS, forward_flops
from dit_jax.images import save_grid
from dit_jax.run import Run
from dit_jax.sampling import preview_labels, sample
from dit_jax.training.log import RunLog
from dit_jax.training.state import TrainState
from dit_jax.training.trainer import Trainer

log = logging.getLogger(__name__)


def train(experiment: Experiment) -> Run:
    """Trains, or resumes where the run's folder left off.

    Returns:
      The run, with its averaged parameters.

    Raises:
      InputError: the experiment cannot run; nothing was written.
      TrainingError: the run cannot go on; its checkpoints are untouched.
      SystemExit: with status 0, after SIGTERM and a save.
    """
    trainer = Trainer(experiment)
    state = trainer.state()
    first, last = int(state.step), experiment.training.steps
    run_log = RunLog(trainer.folder, first, last, experiment.training.batch_size)
    try:
        with _Terminated() as terminated:
            state = _loop(trainer, state, run_log, terminated)
        step = int(state.step)
        trainer.checkpoints.wait()
    finally:
        run_log.close()
    trainer.checkpoints.close()
    if step < last:
        log.info("stopped by SIGTERM after saving step %d; the same command resumes", step)
        raise SystemExit(0)
    return trainer.run(step, state)


def _loop(
    trainer: Trainer, state: TrainState, run_log: RunLog, terminated: threading.Event
) -> TrainState:
    options, steps = trainer.experiment.run, trainer.experiment.training.steps
    meter = _Meter(trainer, run_log)
    step = int(state.step)
    for batch in trainer.batches(step):
        with jax.transfer_guard("disallow"):
            state, metrics = trainer.step(state, batch)
        step += 1
        meter.put(step, metrics)
        stop = step == steps or terminated.is_set()
        if options.sample_every and step % options.sample_every == 0:
            _preview(trainer, step, state)
        if stop or step % options.save_every == 0:
            meter.flush()  # What is saved has been seen to be finite.
            trainer.checkpoints.save(state, trainer.experiment)
        if stop:
            break
    meter.flush()
    return state


class _Meter:
    """Reads each step's metrics while the next step runs, so that the device never waits."""

    def __init__(self, trainer: Trainer, run_log: RunLog):
        self._trainer, self._log = trainer, run_log
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        e = trainer.experiment
        # Forward and backward: three times the forward pass.
        self._image_flops = 3 * forward_flops(e.model, trainer.shape)
        if trainer.teacher is not None:
            self._image_flops += forward_flops(trainer.teacher.model, trainer.shape)
        devices = trainer.layout.mesh.devices
        peak = PEAK_FLOPS.get(devices.flat[0].device_kind)
        self._peak = peak and peak * devices.size

    def put(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics, and reads those of the step before."""
        for value in metrics.values():
            value.copy_to_host_async()
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Reads what is pending, and logs it if it is its turn.

        Raises:
          TrainingError: a value is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._check_finite(step, values)
        self._log.advance(step)
        if step % self._trainer.experiment.run.log_every == 0:
            speed = self._log.images_per_second(step)
            values |= {"images_per_second": speed, "flops_per_second": speed * self._image_flops}
            if self._peak:
                values["mfu"] = values["flops_per_second"] / self._peak
            self._log.write(step, values)

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if not broken:
            return
        checkpoints = self._trainer.checkpoints
        checkpoints.wait()
        saved = checkpoints.steps()
        good = checkpoints.folder / str(saved[-1]) if saved else "none"
        raise TrainingError(
            f"{broken[0]} is not a finite number at step {step} (last good checkpoint: {good}): "
            f"lower --optimizer.learning-rate, set --optimizer.clip-norm 1, or compute in float32"
        )


class _Terminated(threading.Event):
    """Set by SIGTERM while the loop runs, so that the step at hand ends and is saved."""

    def __enter__(self) -> threading.Event:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self.set())
        return self

    def __exit__(self, *_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)


def _preview(trainer: Trainer, step: int, state: TrainState) -> None:
    run = trainer.run(step, state)
    labels = preview_labels(run.model.num_classes)
    images = sample(run, labels, mesh=trainer.layout.mesh)
    save_grid(trainer.folder / "samples" / f"step_{step:08d}.png", images, labels.shape[1])
