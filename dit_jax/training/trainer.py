"""Everything that a training run needs, built and checked before its first step."""

import abc
import functools
from collections.abc import Iterator
from typing import Any

import jax

from dit_jax.checkpoint import Checkpoints
from dit_jax.data import batches, to_device
from dit_jax.evaluation.evaluate import evaluate, prepare
from dit_jax.experiment import Experiment
from dit_jax.flops import forward_flops
from dit_jax.images import save_grid
from dit_jax.parallel import hosts
from dit_jax.parallel.sharding import Layout, place
from dit_jax.paths import local_folder
from dit_jax.run import Run, load
from dit_jax.sampling import preview_labels, sample
from dit_jax.training.folder import claim_folder
from dit_jax.training.program import make_program
from dit_jax.training.state import TrainState, new_state, with_shardings
from dit_jax.training.step import Batch, Metrics
from dit_jax.training.teacher import pin_teacher
from dit_jax.training.warm_start import warm_start


class TrainerBase(abc.ABC):
    """What the loop knows of a run, whatever it trains.

    Attributes:
      experiment: what is trained.
      layout: where arrays lie.
      folder: the run's folder, the local part of it.
      checkpoints: what is saved.
      image_flops: FLOPs of a step for each image.
      evaluate_every: steps between evaluations; 0 for none.
    """

    image_flops: float
    evaluate_every: int = 0

    def __init__(self, experiment: Any, layout: Layout, abstract: TrainState, shardings: Any):
        """Opens the data and the run's folder.

        Raises:
          InputError: there is no data, or the folder belongs to another experiment.
        """
        self.experiment, self.layout = experiment, layout
        self.abstract, self.shardings = abstract, shardings
        self.records = experiment.data.open("train")
        run_folder = claim_folder(experiment)
        self.folder = local_folder(experiment.run.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(
            str(run_folder), experiment.run.keep, experiment.run.keep_every
        )

    def state(self) -> TrainState:
        """Reads the newest checkpoint; else builds the state before the first step."""
        restored = self.checkpoints.restore_newest(with_shardings(self.abstract, self.shardings))
        return self.first_state() if restored is None else restored

    def first_state(self) -> TrainState:
        """Builds the state before the first step."""
        return jax.jit(self.experiment.fresh_state, out_shardings=self.shardings)()

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches from step `start` on, on the devices."""
        e = self.experiment
        rows = self.layout.rows(e.training.batch_size)
        host = batches(
            self.records,
            batch_size=e.training.batch_size,
            start=start,
            steps=e.training.steps,
            seed=e.training.seed,
            num_classes=e.data.num_classes,
            flip=e.data.flip,
            loader=e.loader,
            rows=rows,
        )
        return to_device(host, self.layout.batch, rows, e.training.batch_size, e.loader.ahead)

    @abc.abstractmethod
    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Takes one step; the old state's memory becomes the new one's."""

    @abc.abstractmethod
    def preview(self, step: int, state: TrainState) -> dict[str, float]:
        """Draws a grid of what has been learned, and returns what was measured on the way."""

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Measures what has been learned."""
        return {}


class Trainer(TrainerBase):
    """A diffusion model in training."""

    def __init__(self, experiment: Experiment):
        """Checks the experiment and opens its run folder, mesh, data and state.

        Raises:
          InputError: the experiment cannot run, or the folder belongs to another one.
        """
        experiment.check()
        experiment = pin_teacher(experiment)
        program = make_program(experiment, Layout(experiment.parallel.mesh()))
        self.shape = experiment.shape
        self.teacher = program.teacher and load(
            experiment.distillation.teacher, layout=program.layout
        )
        self._latents = place(experiment.latents.load(), program.layout.replicated)
        # What is missing for grids and evaluations had better be said now.
        if experiment.run.sample_every:
            experiment.latents.load_decoder()
        if experiment.evaluation.samples:
            prepare(experiment.evaluation, experiment.latents, self.shape)
        if experiment.evaluation.every:
            prepare(experiment.evaluation.in_training(), experiment.latents, self.shape)
        super().__init__(experiment, program.layout, program.abstract, program.shardings)
        self.optimizer = program.optimizer
        self.evaluate_every = experiment.evaluation.every
        self._step = program.step()
        # Forward and backward: three times the forward pass.
        self.image_flops = 3 * forward_flops(experiment.model, self.shape)
        if self.teacher is not None:
            self.image_flops += forward_flops(self.teacher.model, self.shape)

    def first_state(self) -> TrainState:
        """Builds the state before the first step, from another run if the experiment says so."""
        state = super().first_state()
        if self.experiment.init_from is None:
            return state
        params = warm_start(self.experiment.init_from, state.params)
        build = functools.partial(
            new_state, optimizer=self.optimizer, decays=self.experiment.training.ema
        )
        return jax.jit(build, out_shardings=self.shardings)(params)

    def step(self, state, batch):
        return self._step(state, batch, self._latents, self.teacher and self.teacher.params)

    def preview(self, step, state):
        run = self.run(step, state)
        labels = preview_labels(run.model.num_classes)
        images = sample(run, labels, mesh=self.layout.mesh)
        if hosts.is_main():
            save_grid(self.folder / "samples" / f"step_{step:08d}.png", images, labels.shape[1])
        return {}

    def evaluate(self, step, state):
        options = self.experiment.evaluation.in_training()
        folder = self.folder / "evaluation" / "training"
        return evaluate(self.run(step, state), folder, options, mesh=self.layout.mesh).metrics

    def run(self, step: int, state: TrainState) -> Run:
        """The run as it stands, with its first average as parameters."""
        e = self.experiment
        return Run(e, self.shape, step, state.ema[str(e.training.ema[0])])
