"""The compiled program of a run: its step with the places of its arrays, on any devices.

Training runs it; planning compiles it for devices that are not there.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.parallel.options import compiler_options
from dit_jax.parallel.sharding import Layout
from dit_jax.run import Run
from dit_jax.training.state import TrainState, with_shardings
from dit_jax.training.step import Step, make_step
from dit_jax.training.teacher import describe_teacher


@dataclasses.dataclass(frozen=True)
class Program:
    """An experiment on a mesh, before anything is computed.

    Attributes:
      experiment: what is trained.
      layout: where arrays lie.
      optimizer: how parameters move.
      abstract: shapes and dtypes of the training state.
      shardings: where the state lies.
      teacher: the run to learn from, with shapes and places for parameters; None without one.
    """

    experiment: Experiment
    layout: Layout
    optimizer: optax.GradientTransformation
    abstract: TrainState
    shardings: TrainState
    teacher: Run | None

    def step(self) -> Step:
        """The training step, jitted; the old state's memory becomes the new one's."""
        replicated, batch = self.layout.replicated, self.layout.batch
        platform = self.layout.mesh.devices.flat[0].platform
        teacher = self.teacher and jax.tree.map(lambda p: p.sharding, self.teacher.params)
        return jax.jit(
            self.plain_step(),
            in_shardings=(self.shardings, batch, replicated, teacher),
            out_shardings=(self.shardings, replicated),
            donate_argnums=0,
            compiler_options=compiler_options(platform),
        )

    def plain_step(self) -> Step:
        """The training step as a function that is not jitted."""
        e = self.experiment
        return make_step(
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

    def arguments(self) -> tuple[TrainState, dict[str, Any], Any, Any]:
        """Shapes, dtypes and places of what the step takes: no data is read for them."""
        e, size = self.experiment, self.experiment.training.batch_size
        batch = {
            "image": jax.ShapeDtypeStruct((size, *e.data.shape), e.latents.source_dtype),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        }
        frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), e.latents.load())
        return (
            with_shardings(self.abstract, self.shardings),
            with_shardings(batch, jax.tree.map(lambda _: self.layout.batch, batch)),
            with_shardings(frozen, jax.tree.map(lambda _: self.layout.replicated, frozen)),
            self.teacher and self.teacher.params,
        )


def make_program(
    experiment: Experiment, layout: Layout, abstract: TrainState | None = None
) -> Program:
    """Lays an experiment out on a mesh.

    Args:
      experiment: what is trained.
      layout: where arrays are to lie.
      abstract: shapes of its state, where they are known already.

    Raises:
      InputError: its arrays or its batch do not divide over the mesh, or its teacher does not suit.
    """
    _check_batch(experiment, layout)
    optimizer = experiment.optimizer.build(experiment.training.steps)
    abstract = jax.eval_shape(experiment.fresh_state) if abstract is None else abstract
    shardings = experiment.state_shardings(layout, abstract)
    teacher = describe_teacher(experiment, layout)
    return Program(experiment, layout, optimizer, abstract, shardings, teacher)


def _check_batch(experiment: Experiment, layout: Layout) -> None:
    training = experiment.training
    devices, parts = layout.ways("batch"), training.accumulation
    if training.batch_size % (devices * parts):
        raise InputError(
            f"a batch of {training.batch_size} does not divide over {devices} devices x "
            f"{parts} accumulation steps: use a multiple of {devices * parts}"
        )
