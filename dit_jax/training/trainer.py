"""Everything that a training run needs, built and checked before its first step."""

import functools
from collections.abc import Iterator

import jax

from dit_jax.checkpoint import Checkpoints
from dit_jax.data import batches, to_device
from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.parallel.sharding import Layout
from dit_jax.run import Run
from dit_jax.training.folder import claim_folder
from dit_jax.training.fresh import abstract_state, fresh_state
from dit_jax.training.state import TrainState, new_state, state_shardings, with_shardings
from dit_jax.training.step import Batch, Metrics, Step, make_step
from dit_jax.training.teacher import load_teacher, pin_teacher
from dit_jax.training.warm_start import warm_start


class Trainer:
    """Everything that a run needs, built before the first step."""

    def __init__(self, experiment: Experiment):
        """Checks the experiment and opens its run folder, mesh, data and state.

        Raises:
          InputError: the experiment cannot run, or the folder belongs to another one.
        """
        experiment.check()
        experiment = pin_teacher(experiment)
        training = experiment.training
        self.experiment = experiment
        self.shape = experiment.shape
        self.layout = Layout(experiment.parallel.mesh())
        _check_batch(experiment, self.layout)
        self.teacher = load_teacher(experiment, self.layout)
        self.records = experiment.data.open("train")
        self.folder = claim_folder(experiment)
        self.checkpoints = Checkpoints(
            str(self.folder), experiment.run.keep, experiment.run.keep_every
        )
        self.optimizer = experiment.optimizer.build(training.steps)
        self.abstract = abstract_state(experiment)
        self.shardings = state_shardings(self.layout, self.optimizer, self.abstract)
        self._latents = jax.device_put(experiment.latents.load(), self.layout.replicated)
        self._step = self._compile()

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

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Takes one step; the old state's memory becomes the new one's."""
        return self._step(state, batch, self._latents, self.teacher and self.teacher.params)

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
            distillation=e.distillation,
            teacher=self.teacher and self.teacher.model,
        )
        teacher = self.teacher and jax.tree.map(lambda p: p.sharding, self.teacher.params)
        return jax.jit(
            step,
            in_shardings=(self.shardings, self.layout.batch, self.layout.replicated, teacher),
            out_shardings=(self.shardings, self.layout.replicated),
            donate_argnums=0,
        )


def _check_batch(experiment: Experiment, layout: Layout) -> None:
    training = experiment.training
    devices, parts = layout.ways("batch"), training.accumulation
    if training.batch_size % (devices * parts):
        raise InputError(
            f"a batch of {training.batch_size} does not divide over {devices} devices x "
            f"{parts} accumulation steps: use a multiple of {devices * parts}"
        )
