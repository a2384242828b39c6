"""A few steps of a small model on a mesh."""

import jax
import numpy as np
import optax

from dit_jax.diffusion import Gaussian
from dit_jax.latents import Pixels
from dit_jax.models.inputs import example_inputs
from dit_jax.parallel.sharding import Layout
from dit_jax.training.state import new_state, state_shardings
from dit_jax.training.step import make_step

SHAPE = (8, 8, 1)
OPTIMIZER = optax.adamw(1e-2)


def batch_of(step, size=16):
    rng = np.random.default_rng(step)
    image = rng.integers(0, 256, (size, *SHAPE), np.uint8)
    return {"image": image, "label": rng.integers(0, 10, size).astype(np.int32)}


def run_steps(
    model,
    parallel,
    devices=None,
    steps=4,
    accumulation=1,
    decays=(0.9,),
    process=Gaussian(),  # noqa: B008
    optimizer=OPTIMIZER,
):
    """Losses and the last state of a few jitted steps on a mesh."""
    layout = Layout(parallel.mesh(devices))
    key, *inputs = example_inputs(SHAPE)

    def init():
        return new_state(model.init(key, *inputs)["params"], optimizer, decays)

    shardings = state_shardings(layout, optimizer, jax.eval_shape(init))
    state = jax.jit(init, out_shardings=shardings)()
    step = make_step(
        model,
        process,
        Pixels(),
        optimizer,
        accumulation=accumulation,
        seed=0,
        layout=layout,
    )
    step = jax.jit(
        step,
        in_shardings=(shardings, layout.batch, layout.replicated),
        out_shardings=(shardings, layout.replicated),
        donate_argnums=0,
    )
    losses = []
    for i in range(steps):
        state, metrics = step(state, batch_of(i), {})
        losses.append(float(metrics["loss"]))
    return np.array(losses), state, metrics
