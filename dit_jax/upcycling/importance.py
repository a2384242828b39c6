"""How much the loss of a trained run depends on each hidden neuron."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dit_jax.data import batches
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.run import Run
from dit_jax.training.state import TrainState
from dit_jax.training.step import make_step


def neuron_importance(run: Run, steps: int, batch_size: int, seed: int) -> np.ndarray:
    """Scores every hidden neuron of the run's perceptrons, [layers, neurons] float32.

    A weight w counts |w dL/dw|, the first-order change of the loss if it were zero (Molchanov et
    al., arXiv 1906.10771), a neuron the sum over the weights and the bias that enter it and the
    weights that leave it, and the scores of the batches are added up. The loss is the run's own,
    on its own training data, on one device.

    Raises:
      InputError: the run's data cannot be opened.
    """
    experiment = run.experiment
    data = batches(
        experiment.data.open("train"),
        batch_size=batch_size,
        start=0,
        steps=steps,
        seed=seed,
        num_classes=experiment.data.num_classes,
        flip=experiment.data.flip,
        loader=experiment.loader,
    )
    scorer = _scorer()
    step = make_step(
        experiment.model,
        experiment.process,
        experiment.latents,
        scorer,
        accumulation=1,
        seed=seed,
        layout=Layout(Parallel().mesh(jax.local_devices()[:1])),
    )
    step, frozen = jax.jit(step), experiment.latents.load()
    state = TrainState(jnp.int32(0), run.params, scorer.init(run.params), ema={})
    for batch in data:
        state, _ = step(state, batch, frozen)
    return np.asarray(state.opt_state)


def _scorer() -> optax.GradientTransformation:
    """An optimizer that adds up scores and moves nothing, so that the training step serves here."""

    def init(params: Any) -> jax.Array:
        return jnp.zeros_like(params["blocks"]["layers"]["ffn"]["fc1"]["bias"])

    def update(grads: Any, scores: jax.Array, params: Any) -> tuple[Any, jax.Array]:
        change = jax.tree.map(lambda w, g: jnp.abs(w * g), params, grads)
        ffn = change["blocks"]["layers"]["ffn"]
        scores += ffn["fc1"]["kernel"].sum(1) + ffn["fc1"]["bias"] + ffn["fc2"]["kernel"].sum(2)
        return jax.tree.map(jnp.zeros_like, grads), scores

    return optax.GradientTransformation(init, update)
