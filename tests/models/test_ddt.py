import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.models import DDT

SMALL = DDT(patch=2, hidden=32, encoder_depth=2, decoder_depth=1, heads=4, num_classes=10)
# What it computes is compared with a PyTorch twin in tests/interop/test_families.py.


def inputs(batch=3, size=(8, 12)):
    x = np.random.default_rng(0).normal(size=(batch, *size, 4)).astype(np.float32)
    return x, np.linspace(0, 1, batch, dtype=np.float32), {"label": np.arange(batch)}


@pytest.fixture(scope="module")
def params():
    return jax.jit(SMALL.init)(jax.random.key(0), *inputs())["params"]


def test_it_begins_by_predicting_zero(params):
    output = SMALL.apply({"params": params}, *inputs())
    assert output.prediction.shape == (3, 8, 12, 4)
    assert (output.prediction == 0).all()


def test_only_the_last_modulation_begins_at_zero(params):
    assert (params["final"]["adaln"]["linear"]["kernel"] == 0).all()
    for stack in ("encoder", "decoder"):
        assert (params[stack]["layers"]["adaln"]["linear"]["kernel"] != 0).all()


def test_stacks_have_their_layers_on_axis_0(params):
    for stack, depth in (("encoder", 2), ("decoder", 1)):
        assert {leaf.shape[0] for leaf in jax.tree.leaves(params[stack])} == {depth}


def test_without_classes_there_is_no_table():
    model = SMALL.clone(num_classes=0)
    x, t, _ = inputs()
    params = jax.eval_shape(model.init, jax.random.key(0), x, t, {})["params"]
    assert "label_embed" not in params
    assert model.null_condition({}) == {}


def test_the_null_label_is_the_number_of_classes():
    condition = {"label": jnp.arange(3)}
    np.testing.assert_array_equal(SMALL.null_condition(condition)["label"], [10, 10, 10])


def test_a_missing_label_and_an_image_that_does_not_divide(params):
    x, t, condition = inputs()
    with pytest.raises(InputError, match="called without 'label'"):
        SMALL.apply({"params": params}, x, t, {})
    with pytest.raises(InputError, match="does not divide into patches"):
        SMALL.apply({"params": params}, x[:, :7], t, condition)


def test_bfloat16_computes_close_to_float32(params):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.05 * rng.normal(size=p.shape).astype(p.dtype), params)
    one, other = (
        SMALL.clone(dtype=dtype).apply({"params": params}, *inputs()).prediction
        for dtype in ("float32", "bfloat16")
    )
    assert other.dtype == jnp.float32
    assert 0 < np.abs(one - other).max() < 0.05 * np.abs(one).max()
