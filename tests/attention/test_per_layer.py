import flax.linen as nn
import jax
import numpy as np
import pytest

from dit_jax import serialization
from dit_jax.attention import CLEAR, PISA, Full, LiT, PerLayer
from dit_jax.errors import InputError
from dit_jax.layers.block import Alternate
from dit_jax.layers.mlp import Mlp, SwiGLU
from dit_jax.layers.stack import Stack
from dit_jax.models import DDT, DiT
from dit_jax.models.inputs import example_inputs

LOCAL, NEARER = CLEAR(radius=2, tile=(4, 4)), CLEAR(radius=1, tile=(4, 4))
FIELDS = {"patch": 1, "hidden": 16, "heads": 2, "num_classes": 3}


def dit(attention, depth=3, **fields):
    return DiT(**FIELDS, depth=depth, attention=attention, **fields)


def random_params(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, *example_inputs((8, 8, 2)))
    return jax.tree.map(lambda s: np.float32(0.3 * rng.normal(size=s.shape)), shapes)


def predict(model, params):
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(2, 8, 8, 2)).astype(np.float32), np.float32([0.2, 0.7])
    return jax.jit(model.apply)(params, x, t, {"label": np.int32([0, 2])}).prediction


def unrolled(mixers, params):
    """A model of such layers, one after the other, and whether they have been run."""
    model = dit(Full(), len(mixers))
    blocks = [model.clone(attention=mixer, parent=None).block() for mixer in mixers]
    seen = {}

    def record(call, args, kwargs, info):
        if isinstance(info.module, Stack):
            tokens, context = args[:2]
            for layer, block in enumerate(blocks):
                own = jax.tree.map(lambda p, i=layer: p[i], params["params"]["blocks"]["layers"])
                tokens, _ = block.apply({"params": own}, tokens, context)
            seen["there"] = True
            return tokens, {}
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        return predict(model, params), seen


def test_layers_have_their_own_mechanism():
    params = random_params(dit(Full()))
    nested = PerLayer(Full(), 1, PerLayer(LOCAL, 1, NEARER))
    expected, seen = unrolled([Full(), LOCAL, NEARER], params)
    assert seen
    np.testing.assert_allclose(predict(dit(nested), params), expected, rtol=1e-4, atol=1e-5)
    for uniform in (Full(), LOCAL, NEARER):
        assert np.abs(predict(dit(uniform), params) - expected).max() > 1e-3


def test_the_same_in_all_layers_is_one_mechanism():
    params = random_params(dit(LOCAL))
    for layers in (1, 2):
        found = predict(dit(PerLayer(LOCAL, layers, LOCAL)), params)
        np.testing.assert_allclose(found, predict(dit(LOCAL), params), rtol=1e-5, atol=1e-6)


def test_channel_mixers_may_take_turns_beside_it():
    ffn = Alternate((Mlp(), SwiGLU()))
    params = random_params(dit(Full(), 4, ffn=ffn))
    found = predict(dit(PerLayer(LOCAL, 2, LOCAL), 4, ffn=ffn), params)
    np.testing.assert_allclose(found, predict(dit(LOCAL, 4, ffn=ffn), params), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="take turns"):
        random_params(dit(PerLayer(Full(), 1, LOCAL), 4, ffn=ffn))


def test_it_is_part_of_the_configuration():
    model = dit(PerLayer(Full(), 2, PISA()))
    assert serialization.from_json(serialization.to_json(model)) == model


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (PerLayer(Full(), 3, LOCAL), "there are 3"),
        (PerLayer(Full(), 0, LOCAL), "there are 3"),
        (PerLayer(Full(), 1, LiT()), "without parameters"),
    ],
)
def test_what_does_not_fit_is_refused(attention, message):
    with pytest.raises(InputError, match=message):
        random_params(dit(attention))


def test_a_model_that_takes_one_mechanism_says_so():
    with pytest.raises(InputError, match="one mechanism"):
        random_params(DDT(**FIELDS, encoder_depth=1, decoder_depth=1, attention=PerLayer()))
