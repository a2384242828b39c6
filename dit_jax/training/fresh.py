"""The state of an experiment before its first step."""

import jax

from dit_jax.experiment import Experiment
from dit_jax.models.inputs import example_inputs
from dit_jax.randomness import Purpose, key_for
from dit_jax.training.state import TrainState, new_state


def fresh_state(experiment: Experiment) -> TrainState:
    """Builds the state before the first step."""
    training = experiment.training
    _, *inputs = example_inputs(experiment.shape)
    params = experiment.model.init(key_for(training.seed, 0, Purpose.INIT), *inputs)["params"]
    return new_state(params, experiment.optimizer.build(training.steps), training.ema)


def abstract_state(experiment: Experiment) -> TrainState:
    """Shapes and dtypes of the training state; computes nothing."""
    return jax.eval_shape(lambda: fresh_state(experiment))
