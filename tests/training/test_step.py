"""One step: the same on any mesh, in parts or whole, and equal to its written-out meaning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.diffusion import Flow
from dit_jax.latents import VAE, Cached, Pixels
from dit_jax.models import DiT
from dit_jax.models.inputs import example_inputs
from dit_jax.models.output import Output
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.randomness import Purpose, key_for
from dit_jax.training.state import new_state
from dit_jax.training.step import make_loss, make_step
from tests.training import steps
from tests.training.steps import OPTIMIZER, SHAPE, batch_of

MODEL = DiT(patch=4, hidden=32, depth=2, heads=2, num_classes=10)
WHOLE = Parallel()


def run_steps(model=MODEL, parallel=WHOLE, **options):
    return steps.run_steps(model, parallel, **options)


@functools.cache
def on_one_device():
    return run_steps(devices=tuple(jax.devices()[:1]))


MESHES = [WHOLE, Parallel(data=2, fsdp=4), Parallel(data=2, fsdp=2, tensor=2)]


@pytest.mark.parametrize("parallel", MESHES)
def test_any_mesh_gives_the_losses_of_one_device(parallel):
    losses, state, _ = run_steps(parallel=parallel)
    # Sums run in another order on another mesh: float32 rounding, grown by Adam over four steps.
    np.testing.assert_allclose(losses, on_one_device()[0], rtol=1e-5)
    devices = {s.device for s in state.params["patch_embed"]["kernel"].addressable_shards}
    assert len(devices) == 8


def test_fsdp_shards_parameters_moments_and_averages():
    _, state, _ = run_steps(parallel=Parallel(fsdp=8), steps=1)
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu, state.ema["0.9"]):
        kernel = tree["blocks"]["layers"]["ffn"]["fc1"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // 8


def test_accumulation_gives_the_loss_of_the_whole_batch():
    model = MODEL.clone(label_dropout=0.0)  # Each part draws its own dropout.
    whole, _, _ = run_steps(model, devices=tuple(jax.devices()[:1]))
    parts, _, _ = run_steps(model, accumulation=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_remat_does_not_change_the_losses():
    losses, _, _ = run_steps(MODEL.clone(remat="full"))
    np.testing.assert_allclose(losses, on_one_device()[0], rtol=1e-5)


def test_step_is_the_written_out_update():
    """Loss, gradient, Adam and EMA by hand, from the documented keys."""
    process, seed = Flow(), 3
    model = MODEL.clone(learn_sigma=False, label_dropout=0.0)
    layout = Layout(Parallel().mesh(jax.devices()[:1]))
    key, *inputs = example_inputs(SHAPE)
    params = model.init(key, *inputs)["params"]
    state = new_state(params, OPTIMIZER, (0.5,)).replace(step=jnp.int32(7))
    step = make_step(model, process, Pixels(), OPTIMIZER, accumulation=1, seed=seed, layout=layout)
    batch = batch_of(0)
    after, metrics = jax.jit(step)(state, batch, {})

    x0 = jnp.asarray(batch["image"], jnp.float32) / 127.5 - 1
    noise = jax.random.normal(key_for(seed, 7, Purpose.NOISE), x0.shape)
    t = process.sample_time(key_for(seed, 7, Purpose.TIME), len(x0))

    def loss(params):
        x_t = (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * noise
        v = model.apply({"params": params}, x_t, t, {"label": batch["label"]}).prediction
        return jnp.mean((v - (noise - x0)) ** 2)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    updates, _ = OPTIMIZER.update(grads, OPTIMIZER.init(params), params)
    expected = optax.apply_updates(params, updates)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    np.testing.assert_allclose(metrics["update_norm"], optax.tree.norm(updates), rtol=1e-5)
    np.testing.assert_allclose(metrics["param_norm"], optax.tree.norm(expected), rtol=1e-6)
    average = jax.tree.map(lambda a, b: (a + b) / 2, params, expected)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, after.params, expected)
    jax.tree.map(close, after.ema["0.5"], average)
    assert int(after.step) == 8


def test_several_averages_move_at_their_own_pace():
    _, state, _ = run_steps(decays=(0.0, 0.999))
    jax.tree.map(np.testing.assert_array_equal, state.ema["0.0"], state.params)
    slow = state.ema["0.999"]["final"]["linear"]["kernel"]
    assert np.abs(slow).max() < 0.01 * np.abs(state.params["final"]["linear"]["kernel"]).max()


def test_a_models_own_losses_and_metrics_join_in():
    import flax.linen as nn

    class Auxiliary(nn.Module):
        @nn.compact
        def __call__(self, x, t, condition, train=False):
            scale = self.param("scale", nn.initializers.ones, ())
            aux = {"losses": {"balance": jnp.array([1.0, 2.0])}, "metrics": {"load": scale}}
            return Output(0 * x * scale, aux)

    example = {"x0": jnp.zeros((2, *SHAPE)), "noise": jnp.zeros((2, *SHAPE))}
    example |= {"t": jnp.full((2,), 0.5), "condition": {}}
    params = {"scale": jnp.float32(4)}
    loss, metrics = make_loss(Auxiliary(), Flow())(params, example, jax.random.key(0))
    assert float(loss) == 3.0
    assert float(metrics["load"]) == 4.0


def test_cached_latents_are_drawn_anew_each_step():
    latents = Cached(VAE(scale=1.0))
    moments = jnp.zeros((2, 4, 4, 8))
    first, again, other = (
        latents.encode({}, key_for(0, step, Purpose.ENCODE), moments) for step in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
