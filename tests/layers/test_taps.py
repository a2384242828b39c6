"""What is tapped is what a plain loop over the layers meets, in every kind of model."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from dit_jax.attention import CLEAR, Full, LiT, PerLayer
from dit_jax.layers.stack import Stack
from dit_jax.layers.taps import COLLECTION, attention_outputs
from dit_jax.models import DDT, DiT, promoe
from dit_jax.models.inputs import example_inputs
from dit_jax.models.switch_dit import SwitchDiT

LOCAL = CLEAR(radius=2, tile=(2, 2))
FIELDS = {"patch": 2, "hidden": 16, "heads": 2, "num_classes": 3}
MODELS = {
    "dit": DiT(depth=3, **FIELDS),
    "no remat": DiT(depth=3, remat="none", **FIELDS),
    "all remat": DiT(depth=3, remat="full", attention=LiT(), **FIELDS),
    "bfloat16": DiT(depth=3, dtype="bfloat16", **FIELDS),
    "per layer": DiT(depth=3, attention=PerLayer(Full(), 1, LOCAL), **FIELDS),
    "experts take turns": promoe(4, 16, 2, patch=2, num_classes=3),
    "switched": SwitchDiT(depth=2, **FIELDS),
    "two stacks": DDT(encoder_depth=3, decoder_depth=2, patch=2, hidden=16, heads=2, num_classes=3),
}


def inputs():
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(2, 8, 8, 2)).astype(np.float32), np.float32([0.2, 0.7])
    return x, t, {"label": np.int32([0, 2])}


def random_params(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, *example_inputs((8, 8, 2)))
    return jax.tree.map(lambda s: np.float32(0.3 * rng.normal(size=s.shape)), shapes)


def by_hand(model, params):
    """What enters the attention's output projection, layer by layer; by the stack's name."""
    stacks = {}

    def visit(call, args, kwargs, info):
        module = info.module
        if isinstance(module, Stack):
            tokens, context, start, stop, block = (*args, 0, module.depth, None)[:5]
            layers = module.variables["params"]["layers"]
            stacks[module.name] = stacks.pop(module.name, [])  # The last one is at work.
            for layer in range(start, stop):
                own = jax.tree.map(lambda p, i=layer: p[i], layers)
                run = module.block.clone(parent=None, name=None) if block is None else block
                tokens, _ = run.apply({"params": own}, tokens, context)
            return tokens, {}
        if isinstance(module, nn.DenseGeneral) and module.axis == (-2, -1):
            [*stacks.values()][-1].append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(visit):
        model.apply(params, *inputs())
    return [stacks[name] for name in sorted(stacks)]


@pytest.mark.parametrize("name", MODELS)
def test_is_what_a_loop_over_the_layers_meets(name):
    model = MODELS[name]

    @jax.jit
    def run(params):
        tapped = model.apply(params, *inputs(), mutable=[COLLECTION])[1]
        return {every: attention_outputs(tapped, every) for every in (1, 2, 9)}, by_hand(
            model, params
        )

    found, stacks = run(random_params(model))
    # bfloat16 keeps three digits.
    tolerance = 0.1 if name == "bfloat16" else 1e-4
    for every, tapped in found.items():
        assert tapped.dtype == model.dtype
        wanted = np.concatenate([np.stack(layers[::every]) for layers in stacks])
        wanted = wanted.astype(np.float32).reshape(tapped.shape)
        error = np.abs(tapped.astype(np.float32) - wanted)
        assert error.max() <= tolerance * np.abs(wanted).max()


def test_nothing_is_kept_unless_asked_for():
    model = MODELS["dit"]
    params = random_params(model)
    assert set(jax.eval_shape(model.init, jax.random.key(0), *inputs())) == {"params"}
    scans = [
        [e for e in jax.make_jaxpr(run)(params).jaxpr.eqns if e.primitive.name == "scan"]
        for run in (
            lambda p: model.apply(p, *inputs()),
            lambda p: model.apply(p, *inputs(), mutable=[COLLECTION]),
        )
    ]
    # The tokens alone; the tokens and what was tapped.
    assert [[len(scan.outvars) for scan in each] for each in scans] == [[1], [2]]
