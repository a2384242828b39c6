import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.layers.linear import linear


class Layer(nn.Module):
    init_law: str = "xavier"
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        return linear((4, 8), x, "layer", axis=(-2, -1), init=self.init_law, bias=self.bias)


def parameters(**options):
    x = jnp.zeros((1, 10, 20))
    return Layer(**options).init(jax.random.key(0), x)["params"]["layer"]


@pytest.mark.parametrize(
    ("law", "kernel", "bias"),
    [
        ("xavier", (6 / (200 + 32)) ** 0.5, 0.0),  # Uniform; DiT leaves biases at zero.
        ("torch", 200**-0.5, 200**-0.5),  # torch.nn.Linear's own law.
        ("zero", 0.0, 0.0),
    ],
)
def test_initial_values_are_uniform_within_the_laws_bounds(law, kernel, bias):
    params = parameters(init_law=law)
    for value, bound in ((params["kernel"], kernel), (params["bias"], bias)):
        assert np.abs(value).max() <= bound
        if bound:
            np.testing.assert_allclose(np.std(value), bound / 3**0.5, rtol=0.25)
            assert np.abs(value).max() > 0.9 * bound


def test_a_bias_can_be_left_out():
    assert parameters(bias=False).keys() == {"kernel"}


def test_the_input_says_the_compute_dtype_and_parameters_stay_float32():
    params = {"params": {"layer": parameters()}}
    assert Layer().apply(params, jnp.zeros((1, 10, 20), jnp.bfloat16)).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
