"""The run that teaches another one: found and checked before the first step."""

import dataclasses

import flax.linen as nn
import jax

from dit_jax.checkpoint import newest_path
from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.layers.taps import COLLECTION, attention_outputs
from dit_jax.models.inputs import example_inputs
from dit_jax.parallel.sharding import Layout
from dit_jax.run import Run, describe, different, mismatches


def pin_teacher(experiment: Experiment) -> Experiment:
    """Names the teacher's checkpoint in place of its run, so that a resume has the same teacher.

    Raises:
      InputError: there is no such run.
    """
    options = experiment.distillation
    if options.teacher is None:
        return experiment
    pinned = dataclasses.replace(options, teacher=newest_path(options.teacher))
    return dataclasses.replace(experiment, distillation=pinned)


def describe_teacher(experiment: Experiment, layout: Layout) -> Run | None:
    """Checks the teacher, with the shapes and places of its parameters; None if there is none.

    Raises:
      InputError: there is no such run, or it cannot teach this experiment's model.
    """
    folder = experiment.distillation.teacher
    if folder is None:
        return None
    teacher = describe(folder, layout)
    differences = mismatches(teacher, experiment)
    if not differences and experiment.distillation.attention:
        shapes = [_attention_shape(m, teacher.shape) for m in (teacher.model, experiment.model)]
        differences = different("attention [L, B, N, D]", *shapes)
    if differences:
        raise InputError(
            f"'{folder}' cannot teach this model ({'; '.join(differences)}): choose another "
            f"--distillation.teacher, or change the experiment"
        )
    return teacher


def _attention_shape(model: nn.Module, shape: tuple[int, int, int]) -> tuple[int, ...]:
    def attention(*inputs: jax.Array) -> jax.Array:
        key, *rest = inputs
        variables = model.init(key, *rest)
        return attention_outputs(model.apply(variables, *rest, mutable=[COLLECTION])[1])

    return jax.eval_shape(attention, *example_inputs(shape)).shape
