import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.attention import DyDiLA, LinearAttention
from dit_jax.attention.linear import focus
from dit_jax.flops import count_flops

GRID = (3, 4)
MODEL = DyDiLA(projectors=3, powers=(1.0, 2.0, 3.0))


def qkv(tokens=12):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, tokens, 2, 4)), jnp.float32) for _ in range(3)]


def random_params(model, strength):
    rng = np.random.default_rng(1)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *qkv(), GRID))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    return {**params, "lambda": np.asarray(strength, np.float32)}


def token_by_token(params, x, name, model):
    """The features of a difference, each token taking its own projector and powers."""
    result = np.zeros(x.shape)
    choose = lambda router, y: int(np.einsum("hd,hdp->p", y, params[router]).argmax())  # noqa: E731
    for b, n in np.ndindex(x.shape[:2]):
        token = np.asarray(x[b, n])
        projector = params[f"{name}_projectors"][choose(f"{name}_projector_router", token)]
        redundancy = np.einsum("hd,hde->he", token, projector)
        power = model.powers[choose(f"{name}_power_router", token)]
        other = model.powers[choose(f"{name}_redundancy_power_router", redundancy)]
        difference = focus(token, power) - params["lambda"][:, None] * focus(redundancy, other)
        result[b, n] = np.maximum(difference, 0)
    return result


def test_equals_the_explicit_form_token_by_token():
    q, k, v = qkv()
    params = random_params(MODEL, [0.3, -0.2])
    qd, kd = (token_by_token(params, x, name, MODEL) for x, name in ((q, "q"), (k, "k")))
    weights = np.einsum("bqhd,bkhd->bhqk", qd, kd)
    weights /= weights.sum(-1, keepdims=True) + 1e-8
    wanted = np.einsum("bhqk,bkhd->bqhd", weights, v)
    mixed = MODEL.apply({"params": params}, q, k, v, GRID)
    np.testing.assert_allclose(mixed, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_without_choices_and_differences_it_is_linear_attention(power):
    """Values and gradients, whatever the projector."""
    plain, model = LinearAttention(power), DyDiLA(projectors=1, powers=(power,))
    params = random_params(model, [0.0, 0.0])

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(mix, *x):
        out, pull = jax.vjp(lambda *x: mix(*x, GRID), *x)
        return out, *pull(jnp.cos(out))

    found = value_and_gradients(functools.partial(model.apply, {"params": params}), *qkv())
    for actual, wanted in zip(found, value_and_gradients(plain, *qkv()), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


def test_starts_without_a_difference():
    params = jax.jit(MODEL.init, static_argnums=4)(jax.random.key(0), *qkv(), GRID)["params"]
    np.testing.assert_array_equal(params["lambda"], 0)


def test_all_parameters_learn_once_there_is_a_difference():
    params = random_params(MODEL, [0.3, 0.2])
    loss = lambda params: jnp.sin(MODEL.apply({"params": params}, *qkv(), GRID)).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)
    for name, leaf in gradient.items():
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, name
    # At the start lambda is the first to learn, and the choice of the plain features.
    gradient = jax.jit(jax.grad(loss))({**params, "lambda": jnp.zeros(2)})
    assert np.abs(gradient["lambda"]).max() > 0
    np.testing.assert_array_equal(gradient["q_projectors"], 0)


def test_work_is_linear_in_the_tokens():
    params = random_params(MODEL, [0.3, 0.2])
    run = lambda *x: MODEL.apply({"params": params}, *x, GRID)  # noqa: E731
    assert count_flops(run, *qkv(48)) == 4 * count_flops(run, *qkv(12))
