import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.layers.mix_ffn import MixFFN


def silu(x):
    return x / (1 + np.exp(-x))


def depthwise(x, conv):
    """A 3x3 window, zeros around the image, by nine shifts."""
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    out = np.zeros_like(x) + conv["bias"]
    for i, j in np.ndindex(3, 3):
        window = padded[:, i : i + x.shape[1], j : j + x.shape[2]]
        out += window * conv["kernel"][i, j, 0]
    return out


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2), (1, 1)])
def test_gates_what_a_window_of_tokens_holds(grid):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, int(np.prod(grid)), 6)).astype(np.float32)
    model, context = MixFFN(), types.SimpleNamespace(grid=grid)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, context))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    assert params["out"].keys() == {"kernel"}
    assert params["out"]["kernel"].shape == (15, 6)  # 2.5 times the width.

    first = params["gate_value"]
    hidden = silu(np.einsum("bnd,dgh->bngh", x, first["kernel"]) + first["bias"])
    gate, value = (hidden[:, :, i].reshape(-1, *grid[-2:], 15) for i in (0, 1))
    gate, value = depthwise(gate, params["gate_conv"]), depthwise(value, params["value_conv"])
    wanted = (value * silu(gate)).reshape(2, -1, 15) @ params["out"]["kernel"]

    y, aux = jax.jit(lambda params, x: model.apply({"params": params}, x, context))(params, x)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    assert aux == {}


def test_bfloat16_in_and_out():
    x, context = jnp.ones((1, 4, 8), jnp.bfloat16), types.SimpleNamespace(grid=(2, 2))
    run = lambda: MixFFN().init_with_output(jax.random.key(0), x, context)[0]  # noqa: E731
    y, _ = jax.eval_shape(run)
    assert y.dtype == jnp.bfloat16
