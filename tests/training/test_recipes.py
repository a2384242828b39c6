"""Recipes of the mesh: the losses of one device, whatever is divided."""

import functools

import jax
import numpy as np
import optax
import pytest

from dit_jax.diffusion import Flow
from dit_jax.errors import InputError
from dit_jax.latents import Pixels
from dit_jax.models import DiT, dit_moe, promoe
from dit_jax.models.inputs import example_inputs
from dit_jax.moe.routers import ProMoERouter
from dit_jax.parallel.mesh import RECIPES, Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.training.state import new_state
from dit_jax.training.step import make_step
from tests.training.steps import SHAPE, run_steps

FIELDS = {"num_classes": 10, "learn_sigma": False, "remat": "full"}
MODELS = {
    "dit": DiT(patch=2, hidden=32, depth=2, heads=4, **FIELDS),
    "dit_moe": dit_moe(2, 32, 4, experts=8, **FIELDS),
    # Seven experts with a prototype and the unconditional one: eight divide over devices.
    "promoe": promoe(2, 32, 4, router=ProMoERouter(experts=7), **FIELDS),
}
OPTIMIZER = optax.adamw(1e-3)


@functools.cache
def train(name: str, parallel: Parallel | None, steps: int = 4):
    """Losses, and the last state, in two parts a step; on one device without a mesh."""
    devices = None if parallel else jax.devices()[:1]
    losses, state, _ = run_steps(
        MODELS[name],
        parallel or Parallel(),
        devices,
        steps,
        accumulation=2,
        process=Flow(),
        optimizer=OPTIMIZER,
    )
    return losses, state


QUICK = {("dit", "fsdp+sp"), ("dit", "fsdp+tp"), ("dit_moe", "fsdp+ep"), ("promoe", "fsdp+sp")}
CASES = [
    pytest.param(name, recipe, marks=[] if (name, recipe) in QUICK else pytest.mark.slow)
    for name in MODELS
    for recipe in RECIPES
    if (name, recipe) != ("dit", "fsdp+ep")
]


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_a_recipe_gives_the_losses_of_one_device(name, recipe):
    losses, _ = train(name, RECIPES[recipe])
    expected, _ = train(name, None)
    assert len(set(expected)) == len(expected)
    # Sums run in another order: float32's rounding, grown by Adam over the steps.
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def held(tree) -> float:
    """Share of a tree's bytes that one device holds."""
    leaves = jax.tree.leaves(tree)
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    return own / sum(leaf.nbytes for leaf in leaves)


def test_replicas_divide_moments_and_averages():
    _, state = train("dit", RECIPES["ddp"], 1)
    assert held(state.params) == 1
    kernels = [t["blocks"]["layers"]["ffn"]["fc1"]["kernel"] for t in (*state.opt_state[0][1:],)]
    assert all(held(kernel) == 1 / 8 for kernel in kernels)
    assert held(state.ema) < 0.2 and held(state.opt_state[0].nu) < 0.2


def test_devices_that_share_tokens_share_the_parameters_too():
    _, state = train("dit", RECIPES["fsdp+sp"])
    assert held(state.params) < 0.2


def test_tokens_that_do_not_divide_are_refused():
    model = DiT(patch=4, hidden=32, depth=2, heads=8, num_classes=10)
    layout = Layout(Parallel(data=1, sequence=8).mesh())
    step = make_step(model, Flow(), Pixels(), OPTIMIZER, accumulation=1, seed=0, layout=layout)
    params = jax.eval_shape(model.init, *example_inputs(SHAPE))["params"]
    state = jax.eval_shape(lambda p: new_state(p, OPTIMIZER, (0.9,)), params)
    batch = {
        "image": jax.ShapeDtypeStruct((8, *SHAPE), np.uint8),
        "label": jax.ShapeDtypeStruct((8,), np.int32),
    }
    with pytest.raises(InputError, match=r"'tokens' of size 4 does not divide over 8 .*sequence"):
        jax.eval_shape(step, state, batch, {})
