"""The training loop: an experiment in, a run folder out."""

import contextlib
import logging
import math

import jax

from dit_jax.errors import TrainingError
from dit_jax.evaluation.curve import draw_curve
from dit_jax.experiment import Experiment
from dit_jax.flops import PEAK_FLOPS
from dit_jax.parallel import hosts
from dit_jax.run import Run
from dit_jax.training.log import RunLog
from dit_jax.training.reconstruction.experiment import DecoderExperiment
from dit_jax.training.reconstruction.trainer import DecoderTrainer
from dit_jax.training.state import TrainState
from dit_jax.training.stop import StopRequest
from dit_jax.training.trainer import Trainer, TrainerBase

log = logging.getLogger(__name__)


def train(experiment: Experiment) -> Run:
    """Trains a diffusion model, or resumes where the run's folder left off.

    Returns:
      The run, with its averaged parameters.

    Raises:
      InputError: the experiment cannot run; nothing was written.
      TrainingError: the run cannot go on; its checkpoints are untouched.
      SystemExit: with status 0, after SIGTERM and a save.
      KeyboardInterrupt: as it came; the same call goes on from the newest checkpoint.
    """
    trainer = Trainer(experiment)
    state = _train(trainer)
    return trainer.run(int(state.step), state)


def train_decoder(experiment: DecoderExperiment) -> None:
    """Trains a decoder, as `train` does a diffusion model."""
    _train(DecoderTrainer(experiment))


def _train(trainer: TrainerBase) -> TrainState:
    experiment = trainer.experiment
    state = trainer.state()
    first, last = int(state.step), experiment.training.steps
    with contextlib.ExitStack() as stack:
        run_log = None
        if hosts.is_main():
            run_log = RunLog(trainer.folder, first, last, experiment.training.batch_size)
            stack.callback(run_log.close)
        stop = stack.enter_context(StopRequest())
        try:
            state = _loop(trainer, state, run_log, stop)
        except KeyboardInterrupt:
            # A notebook's process lives on, and the next run must not meet a save under way.
            trainer.checkpoints.close()
            raise
        step = int(state.step)
        trainer.checkpoints.wait()
    trainer.checkpoints.close()
    if step < last:
        log.info("stopped by SIGTERM after saving step %d; the same command resumes", step)
        raise SystemExit(0)
    return state


def _loop(
    trainer: TrainerBase, state: TrainState, run_log: RunLog | None, request: StopRequest
) -> TrainState:
    options, steps = trainer.experiment.run, trainer.experiment.training.steps
    meter = _Meter(trainer, run_log)
    step = int(state.step)
    for batch in trainer.batches(step):
        with jax.transfer_guard("disallow"):
            state, metrics = trainer.step(state, batch)
        step += 1
        meter.put(step, metrics)
        asked = request.agreed()
        stop = asked or step == steps
        if options.sample_every and step % options.sample_every == 0:
            meter.measured(step, trainer.preview(step, state))
        if stop or step % options.save_every == 0:
            meter.flush()  # What is saved has been seen to be finite.
            trainer.checkpoints.save(state, trainer.experiment)
        if trainer.evaluate_every and step % trainer.evaluate_every == 0 and not asked:
            meter.flush()
            _evaluate(trainer, meter, step, state)
        if stop:
            break
    meter.flush()
    return state


def _evaluate(trainer: TrainerBase, meter: "_Meter", step: int, state: TrainState) -> None:
    """Measures what has been learned, and draws how that went so far."""
    values = trainer.evaluate(step, state)
    meter.measured(step, values)
    if values and hosts.is_main():
        out = trainer.folder / "evaluation" / "training" / "curve.png"
        draw_curve(trainer.folder / "log.jsonl", list(values), out)


class _Meter:
    """Reads each step's metrics while the next step runs, so that the device never waits."""

    def __init__(self, trainer: TrainerBase, run_log: RunLog | None):
        self._trainer, self._log = trainer, run_log
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
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
        if self._log is not None:
            self._write(self._log, step, values)

    def measured(self, step: int, values: dict[str, float]) -> None:
        """Logs what was measured beside the training."""
        if values and self._log is not None:
            self._log.record(step, values)

    def _write(self, log: RunLog, step: int, values: dict[str, float]) -> None:
        log.advance(step)
        if step % self._trainer.experiment.run.log_every == 0:
            speed = log.images_per_second(step)
            flops = speed * self._trainer.image_flops
            values |= {"images_per_second": speed, "flops_per_second": flops}
            if self._peak:
                values["mfu"] = values["flops_per_second"] / self._peak
            log.write(step, values)

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
