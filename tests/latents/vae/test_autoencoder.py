import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax import serialization
from dit_jax.errors import InputError
from dit_jax.interop.engine import by_path
from dit_jax.latents.vae import AutoencoderKL
from dit_jax.latents.vae.blocks import ResidualBlock
from tests.latents.vae.vae_helpers import (
    LAYOUT,
    describe,
    error,
    images,
    latents,
    make_pair,
    random_params,
)
from tests.torch_twins.to_jax import to_nchw, to_nhwc

SMALL = AutoencoderKL(channels=(32, 64), layers=1, groups=8)

TWINS = {
    "two levels": {},
    "three levels, two alike, of grey images, without quant_conv": {
        "block_out_channels": (16, 32, 32),
        "norm_num_groups": 4,
        "latent_channels": 6,
        "in_channels": 1,
        "out_channels": 1,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}


@pytest.fixture(scope="module", params=TWINS)
def pair(request):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    return make_pair(**TWINS[request.param])


@pytest.fixture(scope="module")
def two_levels():
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    return make_pair()


@pytest.fixture(scope="module")
def run():
    """Runs a method of the autoencoder of two levels, compiled once."""

    def compiled(name):
        return jax.jit(lambda params, x: SMALL.apply({"params": params}, x, method=name))

    return {name: compiled(name) for name in ("encode", "decode")}


def abstract(module, side=8):
    x = jax.ShapeDtypeStruct((1, side, side, module.image_channels), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), x)["params"]


def inputs(module):
    """Two images and two latents; not square, so that height and width are not exchanged."""
    f = module.factor
    return images((2, 4 * f, 6 * f, module.image_channels)), latents(
        (2, 4, 6, module.latent_channels)
    )


def run_torch(twin, name, x, weights):
    """Runs diffusers' `name`: outputs and the gradient of their weighted sum, NHWC arrays."""
    import torch

    x = torch.tensor(to_nchw(x), requires_grad=True)
    if name == "encode":
        posterior = twin.encode(x).latent_dist
        outputs = (posterior.mean, posterior.logvar)
    else:
        outputs = (twin.decode(x).sample,)
    sum((y * torch.tensor(to_nchw(w))).sum() for y, w in zip(outputs, weights)).backward()
    return [to_nhwc(y.detach()) for y in outputs], to_nhwc(x.grad)


def run_jax(module, params, name, x, weights):
    def weighted(x):
        outputs = module.apply({"params": params}, x, method=name)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum((y * w).sum() for y, w in zip(outputs, weights)), outputs

    (_, outputs), gradient = jax.jit(jax.value_and_grad(weighted, has_aux=True))(x)
    return outputs, gradient


def errors(twin, module, params, name, x):
    """Relative errors of the outputs (the largest), and of the gradient of their weighted sum."""
    shapes = jax.eval_shape(lambda x: module.apply({"params": params}, x, method=name), x)
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=leaf.shape).astype(np.float32) for leaf in jax.tree.leaves(shapes)]
    expected, expected_gradient = run_torch(twin, name, x, weights)
    outputs, gradient = run_jax(module, params, name, x, weights)
    return max(map(error, outputs, expected)), error(gradient, expected_gradient)


def check_against(twin, module, params, name, x, tolerance, gradient_tolerance):
    output, gradient = errors(twin, module, params, name, x)
    assert output <= tolerance
    assert gradient <= gradient_tolerance


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_equals_diffusers(pair, name):
    twin, module, params = pair
    x = dict(zip(("encode", "decode"), inputs(module)))[name]
    # Two float32 programs that sum in other orders; the gradient passes every layer twice.
    check_against(twin, module, params, name, x, 1e-5, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encode", "decode"])
def test_equals_diffusers_at_full_size(name):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    twin, module, params = make_pair(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32
    )
    assert module == AutoencoderKL()
    x = images((1, 64, 64, 3)) if name == "encode" else latents((1, 8, 8, 4))
    # Sums are up to 4,608 terms long.
    check_against(twin, module, params, name, x, 5e-5, 5e-4)


def layers_of_torch(twin, name, x):
    """Outputs [B, N, C] of the layers with parameters in the order they ran, by name."""
    import torch

    outputs = {}

    def keep(key, layer):
        def hook(_, __, output):
            # A convolution gives [B, C, H, W], attention's norm [B, C, N], a linear layer the rest.
            channels_last = isinstance(layer, torch.nn.Linear)
            output = output if channels_last else output.flatten(2).transpose(1, 2)
            outputs[key] = output.detach().numpy()

        return layer.register_forward_hook(hook)

    layers = [(key, layer) for key, layer in twin.named_modules() if not [*layer.children()]]
    hooks = [keep(key, layer) for key, layer in layers]
    with torch.no_grad():
        getattr(twin, name)(torch.tensor(to_nchw(x)))
    for hook in hooks:
        hook.remove()
    return outputs


def first_divergence(twin, module, params, name, x, tolerance=1e-5):
    """Name of the first layer whose output differs, or None, and how many were compared."""
    expected = layers_of_torch(twin, name, x)
    run = jax.jit(
        lambda x: module.apply({"params": params}, x, method=name, capture_intermediates=True)[1]
    )
    outputs = by_path(run(x)["intermediates"])
    paths = {
        rule.source[0].removesuffix(".weight"): rule.path
        for rule in LAYOUT.entries(describe(twin))
        if len(rule.source) == 1 and re.search(r"/(kernel|scale)$", rule.path)
    }
    compared = [key for key in expected if key in paths]
    for key in compared:
        output = outputs[re.sub(r"/(kernel|scale)$", "/__call__/0", paths[key])]
        output = np.asarray(output).reshape(len(output), -1, output.shape[-1])
        if error(output, expected[key]) > tolerance:
            return key, len(compared)
    return None, len(compared)


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_equals_diffusers_layer_by_layer(two_levels, name):
    twin, module, params = two_levels
    x = dict(zip(("encode", "decode"), inputs(module)))[name]
    diverging, count = first_divergence(twin, module, params, name, x)
    assert diverging is None, f"{name} first differs from diffusers at {diverging}"
    # Every convolution, norm and linear layer but the three that are one here (q, k, v).
    assert count == {"encode": 24, "decode": 32}[name]


def test_the_comparison_by_layers_names_the_layer(two_levels):
    twin, module, params = two_levels
    kernel = params["decoder"]["up_0"]["block_1"]["conv2"]["kernel"]
    changed = jax.tree.map(lambda leaf: leaf * 1.01 if leaf is kernel else leaf, params)
    found, _ = first_divergence(twin, module, changed, "decode", inputs(module)[1])
    assert found == "decoder.up_blocks.0.resnets.1.conv2"


def test_log_variances_are_clipped_as_in_diffusers(two_levels, run):
    import torch

    twin, module, params = two_levels
    bias = np.zeros(8, np.float32)
    bias[4:] = [-100, 100, 0, 50]
    params = params | {"quant_conv": params["quant_conv"] | {"bias": jnp.asarray(bias)}}
    x, _ = inputs(module)
    _, log_variance = run["encode"](params, x)
    with torch.no_grad():
        kept = twin.quant_conv.bias.clone()
        twin.quant_conv.bias.copy_(torch.tensor(bias))
        expected = to_nhwc(twin.encode(torch.tensor(to_nchw(x))).latent_dist.logvar)
        twin.quant_conv.bias.copy_(kept)
    assert (log_variance[..., 0] == -30).all() and (log_variance[..., 1] == 20).all()
    assert error(log_variance, expected) <= 1e-5


def test_the_parameter_count_is_stable_diffusions():
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract(AutoencoderKL())))
    assert count == 83_653_863


def test_parameters_are_float32_and_results_too():
    module = SMALL.clone(dtype="bfloat16")
    params = abstract(module)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    call = lambda name, x: jax.eval_shape(  # noqa: E731
        lambda params, x: module.apply({"params": params}, x, method=name), params, x
    )
    mean, log_variance = call("encode", images((2, 16, 24, 3)))
    assert mean.shape == log_variance.shape == (2, 8, 12, 4)
    assert mean.dtype == log_variance.dtype == jnp.float32
    decoded = call("decode", latents((2, 8, 12, 4)))
    assert decoded.shape == (2, 16, 24, 3) and decoded.dtype == jnp.float32


def test_bfloat16_is_close(two_levels, run):
    _, module, params = two_levels
    rough = module.clone(dtype="bfloat16")
    decode = jax.jit(lambda params, z: rough.apply({"params": params}, z, method="decode"))
    exact = run["decode"](params, latents())
    # bfloat16 rounds to 2^-9 = 0.2 %, some twenty layers in a row.
    assert 1e-4 < error(decode(params, latents()), np.asarray(exact)) < 0.05


def test_a_norm_keeps_its_digits_where_the_mean_is_large():
    block = ResidualBlock(32, 8)
    x = latents((1, 4, 4, 32))
    params = random_params(block, x)
    run = jax.jit(lambda x: block.apply({"params": params}, x) - x)
    # Around 1000 float32 has steps of 6e-5, around its square of 0.06, too coarse for a variance.
    assert np.abs(run(x + np.float32(1000)) - run(x)).max() < 1e-3


def test_calling_reconstructs_from_the_mean(two_levels, run):
    _, module, params = two_levels
    expected = run["decode"](params, run["encode"](params, images())[0])
    result = jax.jit(module.apply)({"params": params}, images())
    # The same layers in two programs.
    assert error(result, np.asarray(expected)) <= 1e-5


@pytest.mark.parametrize(("name", "make"), [("encode", images), ("decode", latents)])
def test_samples_do_not_see_each_other(two_levels, run, name, make):
    _, _, params = two_levels
    x, other = make(), make(seed=1)
    other[0] = x[0]
    for one, again in zip(*(jax.tree.leaves(run[name](params, x)) for x in (x, other))):
        np.testing.assert_array_equal(one[0], again[0])


def test_the_configuration_survives_json():
    module = AutoencoderKL(channels=(16, 32), groups=4, use_quant_conv=False)
    assert serialization.from_json(serialization.to_json(module)) == module


@pytest.mark.parametrize(
    ("module", "shape", "method", "message"),
    [
        (SMALL, (1, 15, 16, 3), "encode", r"15x16x3.*multiples of 2"),
        (SMALL, (1, 16, 15, 3), "encode", r"16x15x3.*multiples of 2"),
        (AutoencoderKL(), (1, 12, 16, 3), "encode", r"12x16x3.*multiples of 8"),
        (SMALL, (1, 16, 16, 4), "encode", r"16x16x4.*channels 3"),
        (SMALL, (1, 8, 8, 3), "decode", r"latents of 3 channels.*4"),
        (SMALL.clone(groups=32, channels=(32, 48)), (1, 8, 8, 3), "encode", r"\(32, 48\).*32 gr"),
    ],
)
def test_bad_input_is_one_line_that_says_what_was_wrong(module, shape, method, message):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(InputError, match=message) as caught:
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, method=method), x)
    assert "\n" not in str(caught.value)
