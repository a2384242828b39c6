"""The training loop: an experiment in, a run folder out."""

import functools
import json
import logging
import math
import pathlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax

from dit_jax import serialization
from dit_jax.checkpoint import Checkpoints, has_checkpoints
from dit_jax.data import batches, to_device
from dit_jax.errors import InputError, TrainingError
from dit_jax.experiment import Experiment, trajectory_differences
from dit_jax.flops import PEAK_FLOPS, forward_flops
from dit_jax.images import save_grid
from dit_jax.models.inputs import example_inputs
from dit_jax.parallel.sharding import Layout
from dit_jax.randomness import Purpose, key_for
from dit_jax.run import Run
from dit_jax.sampling import preview_labels, sample
from dit_jax.training.log import RunLog
from dit_jax.training.state import TrainState, new_state, state_shardings, with_shardings
from dit_jax.training.step import Batch, Step, make_step
from dit_jax.training.warm_start import warm_start

log = logging.getLogger(__name__)


class Trainer:
    """Everything that a run needs, built before the first step."""

    def __init__(self, experiment: Experiment):
        """Checks the experiment and opens its run folder, mesh, data and state.

        Raises:
          InputError: the experiment cannot run, or the folder belongs to another one.
        """
        experiment.check()
        training = experiment.training
        self.experiment = experiment
        self.shape = experiment.shape
        self.layout = Layout(experiment.parallel.mesh())
        _check_batch(experiment, self.layout)
        self.records = experiment.data.open("train")
        self.folder = claim_folder(experiment)
        self.checkpoints = Checkpoints(
            str(self.folder), experiment.run.keep, experiment.run.keep_every
        )
        self.optimizer = experiment.optimizer.build(training.steps)
        self.abstract = abstract_state(experiment)
        self.shardings = state_shardings(self.layout, self.optimizer, self.abstract)
        self.step = self._compile()

    def state(self) -> TrainState:
        """Reads the newest checkpoint; else builds the state before the first step."""
        restored = self.checkpoints.restore_newest(with_shardings(self.abstract, self.shardings))
        if restored is not None:
            return restored
        state = jax.jit(lambda: fresh_state(self.experiment), out_shardings=self.shardings)()
        if self.experiment.init_from is None:
            return state
        params = warm_start(self.experiment.init_from, state.params)
        build = functools.partial(
            new_state, optimizer=self.optimizer, decays=self.experiment.training.ema
        )
        return jax.jit(build, out_shardings=self.shardings)(params)

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches from step `start` on, on the devices."""
        e = self.experiment
        host = batches(
            self.records,
            batch_size=e.training.batch_size,
            start=start,
            steps=e.training.steps,
            seed=e.training.seed,
            num_classes=e.data.num_classes,
            flip=e.data.flip,
            loader=e.loader,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return to_device(host, self.layout.batch, e.loader.ahead)

    def run(self, step: int, state: TrainState) -> Run:
        """The run as it stands, with its first average as parameters."""
        e = self.experiment
        return Run(e, self.shape, step, state.ema[str(e.training.ema[0])])

    def _compile(self) -> Step:
        e = self.experiment
        step = make_step(
            e.model,
            e.process,
            e.latents,
            self.optimizer,
            accumulation=e.training.accumulation,
            seed=e.training.seed,
            layout=self.layout,
        )
        return jax.jit(
            step,
            in_shardings=(self.shardings, self.layout.batch),
            out_shardings=(self.shardings, self.layout.replicated),
            donate_argnums=0,
        )


def fresh_state(experiment: Experiment) -> TrainState:
    """Builds the state before the first step."""
    training = experiment.training
    _, *inputs = example_inputs(experiment.shape)
    params = experiment.model.init(key_for(training.seed, 0, Purpose.INIT), *inputs)["params"]
    return new_state(params, experiment.optimizer.build(training.steps), training.ema)


def abstract_state(experiment: Experiment) -> TrainState:
    """Shapes and dtypes of the training state; computes nothing."""
    return jax.eval_shape(lambda: fresh_state(experiment))


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
    step = saved = int(state.step)
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
            if step > saved:
                trainer.checkpoints.save(state, trainer.experiment)
                saved = step
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


def claim_folder(experiment: Experiment) -> pathlib.Path:
    """Makes the run's folder this experiment's, and returns it.

    Raises:
      InputError: it holds a run of another configuration.
    """
    folder = pathlib.Path(experiment.run.dir).expanduser()
    record = folder / "experiment.json"
    if record.exists():
        old = serialization.from_json(json.loads(record.read_text()))
        changed = trajectory_differences(old, experiment)
        if changed and not experiment.run.allow_changes:
            raise InputError(
                f"'{folder}' holds a run of another configuration ({'; '.join(changed)}): choose "
                f"another --run.dir, or pass --run.allow-changes"
            )
        if (
            changed
            and abstract_state(old) != abstract_state(experiment)
            and has_checkpoints(folder)
        ):
            raise InputError(
                f"the checkpoints of '{folder}' are of another model or optimizer "
                f"({'; '.join(changed)}): choose another --run.dir, and --init-from {folder} to "
                f"start from its parameters"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / "experiment.json.tmp"
        scratch.write_text(json.dumps(serialization.to_json(experiment), indent=2) + "\n")
        scratch.replace(record)
    except OSError as error:
        raise InputError(f"cannot write to --run.dir '{folder}': {error.strerror}") from error
    return folder


def _check_batch(experiment: Experiment, layout: Layout) -> None:
    training = experiment.training
    devices, parts = layout.mesh.devices.size, training.accumulation
    if training.batch_size % (devices * parts):
        raise InputError(
            f"a batch of {training.batch_size} does not divide over {devices} devices x "
            f"{parts} accumulation steps: use a multiple of {devices * parts}"
        )


def _preview(trainer: Trainer, step: int, state: TrainState) -> None:
    run = trainer.run(step, state)
    labels = preview_labels(run.model.num_classes)
    images = sample(run, labels, mesh=trainer.layout.mesh)
    save_grid(trainer.folder / "samples" / f"step_{step:08d}.png", images, labels.shape[1])
