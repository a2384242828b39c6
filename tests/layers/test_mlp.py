import jax
import numpy as np
import pytest

from dit_jax.layers.mlp import Mlp, SwiGLU


def random_params(model, x):
    rng = np.random.default_rng(0)
    params = jax.eval_shape(model.init, jax.random.key(0), x, None)["params"]
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)


X = np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32)


def test_mlp_is_two_layers_with_the_tanh_form_of_gelu_between():
    params = random_params(Mlp(ratio=2), X)
    h = X @ params["fc1"]["kernel"] + params["fc1"]["bias"]
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    expected = h @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    y, aux = Mlp(ratio=2).apply({"params": params}, X, None)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    assert aux == {}


@pytest.mark.parametrize("bias", [True, False])
def test_swiglu_gates_values_by_silu(bias):
    model = SwiGLU(bias=bias)
    params = random_params(model, X)
    assert ("bias" in params["out"]) == bias
    gate, value = (X @ params["gate_value"]["kernel"][:, i] for i in (0, 1))
    if bias:
        gate, value = (h + params["gate_value"]["bias"][i] for i, h in enumerate((gate, value)))
    h = gate / (1 + np.exp(-gate)) * value
    expected = h @ params["out"]["kernel"] + (params["out"]["bias"] if bias else 0)
    y, _ = model.apply({"params": params}, X, None)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("width", "hidden"), [(384, 1024), (768, 2048), (1024, 2730), (1152, 3072), (2048, 5461)]
)
def test_swiglu_is_two_thirds_as_wide_as_a_plain_perceptron(width, hidden):
    x = jax.ShapeDtypeStruct((1, 1, width), np.float32)
    params = jax.eval_shape(SwiGLU().init, jax.random.key(0), x, None)["params"]
    assert params["gate_value"]["kernel"].shape == (width, 2, hidden)
