"""The largest preset's training step, built without a weight in memory."""

import math

import jax
import jax.numpy as jnp
import pytest

from dit_jax.data import Absent
from dit_jax.diffusion import Euler, Sampling
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.latents import VAE, Cached
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.presets import find_preset
from dit_jax.training.state import state_shardings, with_shardings
from dit_jax.training.step import make_step


@pytest.mark.parametrize(
    "parallel",
    [Parallel(expert=8), Parallel(fsdp=2, expert=4), Parallel(expert=4, tensor=2)],
    ids=["expert=8", "fsdp=2 x expert=4", "expert=4 x tensor=2"],
)
def test_the_step_of_g_lowers_with_expert_parallelism(parallel):
    preset = find_preset("DiT-MoE-G/2-16E2A")
    experiment = Experiment(
        model=preset.model.clone(dtype="bfloat16", remat="full"),
        process=preset.process,
        latents=Cached(VAE()),
        data=Absent((32, 32, 8), 1000),
        sampling=Sampling(Euler(steps=50)),
        training=Training(batch_size=16),
        run=RunFolder("unset"),
    )
    layout = Layout(parallel.mesh())
    optimizer = experiment.optimizer.build(10)
    abstract = jax.eval_shape(experiment.fresh_state)
    shardings = state_shardings(layout, optimizer, abstract)
    state = with_shardings(abstract, shardings)
    batch = {
        "image": jax.ShapeDtypeStruct((16, 32, 32, 8), jnp.float32, sharding=layout.batch),
        "label": jax.ShapeDtypeStruct((16,), jnp.int32, sharding=layout.batch),
    }
    step = make_step(
        experiment.model,
        experiment.process,
        experiment.latents,
        optimizer,
        accumulation=1,
        seed=0,
        layout=layout,
    )
    lowered = jax.jit(step, out_shardings=(shardings, layout.replicated)).lower(state, batch, {})
    assert "all_to_all" in lowered.as_text()

    # What a device holds of parameters, two moments and one average, in float32.
    held = sum(
        4 * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(state)
        if leaf.dtype == jnp.float32
    )
    whole = 4 * 4 * 16.5e9
    assert whole / 8 <= held <= 1.6 * whole / 8  # Attention is not divided by experts.
