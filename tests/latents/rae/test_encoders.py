"""Vision encoders equal those of transformers, as a whole and layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax import serialization
from dit_jax.errors import InputError
from dit_jax.latents.rae.encoders import MAE, Dinov2, Perceptron, SigLIP
from dit_jax.latents.rae.resize import resize_bicubic
from dit_jax.layers.mlp import SwiGLU
from tests.latents.rae import encoder_helpers as helpers
from tests.latents.rae.encoder_helpers import ENCODERS, error, errors, images, make_pair
from tests.torch_twins.to_jax import to_nchw

TINY = {"hidden": 32, "depth": 2, "heads": 2, "patch": 4, "image_size": 16}
MODULES = {
    "dinov2": Dinov2(**TINY, ffn=Perceptron(48), registers=3),
    "siglip": SigLIP(**TINY, ffn=Perceptron(48, approximate=True)),
    "vit-mae": MAE(**TINY, ffn=Perceptron(48)),
}


def abstract(module):
    x = jax.ShapeDtypeStruct((1, module.image_size, module.image_size, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), x)["params"]


def random_params(module):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), abstract(module)
    )


@pytest.fixture(scope="module", params=ENCODERS)
def pair(request, tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return make_pair(request.param, tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("shape", [(2, 16, 16, 3), (2, 12, 20, 3)], ids=["native", "resized"])
def test_tokens_and_gradient_are_those_of_transformers(pair, shape):
    output, gradient = errors(*pair, images(shape))
    assert output <= 1e-5
    assert gradient <= 1e-4


def first_divergence(twin, module, params, tolerance=1e-5):
    """Name of the first layer that maps transformers' input of it to something else, or None."""
    import torch

    blocks, final = (
        blocks_of(twin),
        getattr(twin, "layernorm", getattr(twin, "post_layernorm", None)),
    )
    calls = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
        for layer in (*blocks, final)
    ]
    x = images()
    with torch.no_grad():
        helpers.run_torch(twin, torch.tensor(to_nchw(x)))
    for hook in hooks:
        hook.remove()
    tokens, kept = module.apply(
        {"params": params}, x, capture_intermediates=lambda _, method: method == "embed"
    )
    (embedded,) = kept["intermediates"]["embed"]
    if error(embedded, calls[0][0].numpy()) > tolerance:
        return "embeddings"
    block = module.block()
    apply = jax.jit(lambda layer, x: block.apply({"params": layer}, x, (3, 5))[0])
    for i, (before, after) in enumerate(calls[:-1]):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]["layers"])
        if error(apply(layer, before.numpy()), after.numpy()) > tolerance:
            return f"layer {i}"
    after = calls[-1][1][:, module.prefix_tokens :].numpy()
    return "final norm" if error(tokens, after) > tolerance else None


def blocks_of(twin):
    """The blocks of any of the encoders."""
    if hasattr(twin, "layers"):
        return twin.layers
    return getattr(twin.encoder, "layer", getattr(twin.encoder, "layers", None))


def test_every_layer_is_that_of_transformers(pair):
    diverging = first_divergence(*pair)
    assert diverging is None, f"{diverging} is the first to differ from transformers"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("cls",), "embeddings"),
        (("registers",), "embeddings"),
        (("blocks", "layers", "scale2"), "layer 0"),
        (("norm", "bias"), "final norm"),
    ],
)
def test_the_comparison_by_layers_names_the_layer(tmp_path, path, name):
    pytest.importorskip("transformers")
    twin, module, params = make_pair("dinov2 with registers", tmp_path)
    changed = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaf * 1.01 if tuple(k.key for k in keys) == path else leaf, params
    )
    assert first_divergence(twin, module, changed) == name


FULL = {
    "dinov2": (helpers.dinov2_with_registers, {"image_size": 518, "patch_size": 14}, 224),
    "siglip": (helpers.siglip, {"image_size": 256, "patch_size": 16}, 256),
    "vit-mae": (helpers.mae, {"image_size": 224, "patch_size": 16}, 256),
}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
RELEASED = {"dinov2": Dinov2(registers=4), "siglip": SigLIP(), "vit-mae": MAE()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_sizes_are_those_of_transformers(tmp_path, name):
    """As representation autoencoders have them, position embeddings resized for two of three."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    make, sizes, side = FULL[name]
    more = {"num_register_tokens": 4} if name == "dinov2" else {"intermediate_size": 3072}
    twin = helpers.randomised(make(**BASE, **sizes, **more))
    twin.save_pretrained(tmp_path / "theirs")
    module, params = helpers.converted(tmp_path / "theirs", tmp_path / "ours")
    assert module == RELEASED[name]
    output, gradient = errors(twin, module, params, images((1, side, side, 3)))
    # Twelve layers of sums of up to 3,072 terms.
    assert output <= 5e-5
    assert gradient <= 5e-4


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(4, 9), (7, 7), (20, 30), (7, 3)])
def test_resizing_is_pytorchs(size, antialias):
    torch = pytest.importorskip("torch")
    x = images((2, 7, 7, 3))
    options = {"mode": "bicubic", "align_corners": False, "antialias": antialias}
    expected = torch.nn.functional.interpolate(torch.tensor(to_nchw(x)), size=size, **options)
    ours = resize_bicubic(x, size, antialias=antialias)
    # PyTorch computes where pixels fall in float32.
    np.testing.assert_allclose(to_nchw(ours), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_the_tokens_are_those_of_the_patches(name):
    module = MODULES[name]
    params = random_params(module)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    for dtype in ("float32", "bfloat16"):
        run = lambda x: module.clone(dtype=dtype).apply({"params": params}, x)  # noqa: B023, E731
        tokens = jax.eval_shape(run, images())
        assert (tokens.shape, tokens.dtype) == ((2, 15, 32), jnp.float32)


def test_bfloat16_is_close():
    module = MODULES["dinov2"]
    params = random_params(module)
    exact = module.apply({"params": params}, images())
    rough = module.clone(dtype="bfloat16").apply({"params": params}, images())
    # bfloat16 rounds to 2^-9 = 0.2 %, some ten layers in a row.
    assert 1e-4 < error(rough, np.asarray(exact)) < 0.05


@pytest.mark.parametrize("name", MODULES)
def test_without_scale_and_bias_the_same_parameters_give_normalised_tokens(name):
    module = MODULES[name]
    params = random_params(module)
    plain = module.clone(affine=False)
    assert "norm" not in abstract(plain)
    tokens = plain.apply({"params": params}, images())
    np.testing.assert_allclose(tokens.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(tokens.std(axis=-1), 1, atol=1e-3)
    scaled = tokens * params["norm"]["scale"] + params["norm"]["bias"]
    affine = module.apply({"params": params}, images())
    np.testing.assert_allclose(affine, scaled, atol=1e-5)


def test_the_defaults_are_the_sizes_of_released_models():
    counts = {
        # By transformers, less what it does not use here (mask token, pooling head).
        Dinov2(): 86_579_712,
        Dinov2(registers=4): 86_582_784,
        SigLIP(): 85_843_200,
        MAE(): 85_798_656,
    }
    for module, count in counts.items():
        assert sum(leaf.size for leaf in jax.tree.leaves(abstract(module))) == count


def test_values_are_normalised_as_each_was_trained():
    assert MODULES["siglip"].mean == MODULES["siglip"].std == (0.5, 0.5, 0.5)
    for name in ("dinov2", "vit-mae"):
        assert MODULES[name].mean == (0.485, 0.456, 0.406)
        assert MODULES[name].std == (0.229, 0.224, 0.225)
    assert [module.prefix_tokens for module in MODULES.values()] == [4, 0, 1]


@pytest.mark.parametrize("name", MODULES)
def test_the_configuration_survives_json(name):
    module = MODULES[name].clone(ffn=SwiGLU()) if name == "dinov2" else MODULES[name]
    assert serialization.from_json(serialization.to_json(module)) == module


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({}, (1, 15, 16, 3), "15x16 does not divide into patches of 4x4"),
        ({"heads": 5}, (1, 16, 16, 3), "width of 32 does not divide into 5 heads"),
    ],
)
def test_bad_input_is_one_line_that_says_what_was_wrong(changes, shape, message):
    module = MODULES["vit-mae"].clone(**changes)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(InputError, match=message) as caught:
        jax.eval_shape(module.init, jax.random.key(0), x)
    assert "\n" not in str(caught.value)
