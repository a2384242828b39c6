import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax import serialization
from dit_jax.attention import Full
from dit_jax.errors import InputError
from dit_jax.flops import count_flops
from dit_jax.kernels.softmax_attention import choose, cudnn, softmax_attention, splash, xla
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, use_layout

LONG = (1, 1024, 2, 8)


def qkv(shape, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in "qkv"]


def reference(q, k, v):
    """Softmax(q k^T / sqrt(Dh)) v in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)


def value_and_gradients(function, *arrays):
    *arrays, cotangent = arrays
    y, pull = jax.vjp(function, *arrays)
    return y, *pull(cotangent)


def one_device():
    """A layout of one device: without any, a process of eight may trace for all of them."""
    return use_layout(Layout(Parallel().mesh(jax.devices()[:1])))


def lowered(function, arrays, platform):
    # A function of its own, for JAX keeps traces by function, and knows nothing of layouts.
    return (
        jax.jit(lambda *arrays: function(*arrays))
        .trace(*arrays)
        .lower(lowering_platforms=(platform,))
        .as_text()
    )


auto = jax.jit(softmax_attention)


@pytest.mark.parametrize("shape", [(2, 40, 3, 72), (1, 1, 1, 1), (1, 17, 2, 5)])
def test_equals_a_float64_reference(shape):
    q, k, v = qkv(shape)
    mixed = auto(q, k, v)
    assert mixed.shape == shape and mixed.dtype == v.dtype
    np.testing.assert_allclose(mixed, reference(q, k, v), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 99), st.floats(0, 10), st.floats(-5, 5))
def test_what_holds_for_any_queries(seed, scale, shift):
    q, k, v = qkv((1, 17, 2, 5), seed=seed)
    mixed = auto(scale * q, k, v)
    # float32's rounding of logits up to some 100 is an error of the weights of 1e-5.
    np.testing.assert_allclose(mixed, reference(scale * q, k, v), rtol=1e-4, atol=1e-4)
    # Weights sum to 1, they do not see what all keys share, and equal keys share them evenly.
    np.testing.assert_allclose(auto(scale * q, k, v + shift), mixed + shift, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(auto(scale * q, k + shift, v), mixed, rtol=1e-3, atol=1e-3)
    mean = jnp.broadcast_to(v.mean(1, keepdims=True), v.shape)
    np.testing.assert_allclose(auto(scale * q, 0 * k + shift, v), mean, rtol=1e-4, atol=1e-4)


# Blocks that are full, and one that is not.
@pytest.mark.parametrize("tokens", [256, 200])
def test_splash_equals_xla_forward_and_backward(tokens, monkeypatch):
    monkeypatch.setattr(splash, "_LARGEST_BLOCK", 128)
    *arrays, cotangent = *qkv((2, tokens, 1, 72)), qkv((2, tokens, 1, 72), seed=1)[0]
    interpreted = functools.partial(splash.attention, interpret=True)
    found = jax.jit(functools.partial(value_and_gradients, interpreted))(*arrays, cotangent)
    expected = jax.jit(functools.partial(value_and_gradients, xla.attention))(*arrays, cotangent)
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_splash_rounds_only_its_operands_in_bfloat16():
    arrays = qkv((1, 200, 1, 72), jnp.bfloat16)
    mixed = jax.jit(functools.partial(splash.attention, interpret=True))(*arrays)
    assert mixed.dtype == jnp.bfloat16
    error = np.abs(np.asarray(mixed, np.float32) - reference(*arrays)).max()
    assert error < 2**-7 * np.abs(np.asarray(arrays[2], np.float32)).max()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 200_000))
def test_blocks_are_whole_lanes_and_waste_little(tokens):
    block = splash.block_size(tokens)
    blocks = -(-tokens // block)
    assert block % 128 == 0 and 128 <= block <= 1024
    assert blocks == -(-tokens // 1024) and blocks * block - tokens < 128 * blocks


@pytest.mark.parametrize(
    ("tokens", "block"), [(256, 256), (1024, 1024), (1296, 768), (4096, 1024), (65_536, 1024)]
)
def test_blocks_of_common_grids(tokens, block):
    assert splash.block_size(tokens) == block


@pytest.mark.parametrize(
    ("platform", "tokens", "head", "dtype", "expected"),
    [
        ("tpu", 256, 72, "bfloat16", "xla"),
        ("tpu", 1024, 72, "bfloat16", "splash"),
        ("tpu", 4096, 128, "float32", "splash"),
        ("tpu", 4096, 128, "float16", "xla"),
        ("tpu", 4096, 512, "bfloat16", "xla"),
        ("cuda", 256, 72, "bfloat16", "cudnn"),
        ("cuda", 65_536, 64, "float16", "cudnn"),
        ("cuda", 4096, 64, "float32", "xla"),
        ("cuda", 4096, 70, "bfloat16", "xla"),
        ("cuda", 4096, 512, "bfloat16", "xla"),
        ("rocm", 4096, 64, "bfloat16", "xla"),
        ("cpu", 65_536, 64, "bfloat16", "xla"),
    ],
)
def test_choice(platform, tokens, head, dtype, expected):
    assert choose(platform, (2, tokens, 16, head), jnp.dtype(dtype)) == expected


@pytest.mark.parametrize(
    ("implementation", "head", "dtype", "message"),
    [
        ("cudnn", 64, "bfloat16", "needs an NVIDIA GPU"),
        ("cudnn", 64, "float32", "bfloat16 or float16, not in float32"),
        ("cudnn", 70, "bfloat16", "heads of 8, 16, ... 128, not of 70"),
        ("splash", 64, "float16", "bfloat16 or float32, not in float16"),
    ],
)
def test_wrong_choices_are_refused_in_one_line(implementation, head, dtype, message, monkeypatch):
    monkeypatch.setattr(cudnn, "here", lambda: message != "needs an NVIDIA GPU")
    arrays = qkv((1, 16, 1, head), dtype)
    with pytest.raises(InputError, match=message) as error:
        softmax_attention(*arrays, implementation)
    assert str(error.value).endswith("choose implementation 'auto' or 'xla'")
    assert "\n" not in str(error.value)


def test_there_is_no_cudnn_here():
    assert not cudnn.here()


def test_the_platform_that_is_lowered_for_decides():
    arrays = qkv(LONG)
    with one_device():
        assert "tpu_custom_call" in lowered(softmax_attention, arrays, "tpu")
        assert "tpu_custom_call" not in lowered(softmax_attention, arrays, "cpu")
        assert "tpu_custom_call" not in lowered(softmax_attention, arrays, "cuda")
    short = qkv((1, 256, 2, 8))
    with one_device():
        assert "tpu_custom_call" not in lowered(softmax_attention, short, "tpu")


def test_explicit_splash_is_lowered_for_short_sequences_too():
    arrays = qkv((1, 256, 2, 8))
    run = functools.partial(softmax_attention, implementation="splash")
    assert "tpu_custom_call" in lowered(run, arrays, "tpu")


def test_over_devices_splash_needs_a_layout():
    """A compiler cannot divide a Pallas kernel: each device runs it on its own heads."""
    arrays = qkv((2, 1024, 2, 8))
    assert "tpu_custom_call" not in lowered(softmax_attention, arrays, "tpu")
    layout = Layout(Parallel(data=2, fsdp=2, tensor=2).mesh())
    with pytest.raises(InputError, match="does not divide"), use_layout(layout):
        lowered(softmax_attention, arrays, "tpu")
    arrays = qkv((4, 1024, 2, 8))
    with use_layout(layout):
        text = lowered(softmax_attention, arrays, "tpu")
        found = jax.jit(lambda *arrays: softmax_attention(*arrays))(*arrays)
    assert "tpu_custom_call" in text and "1x1x1024x8" in text
    np.testing.assert_array_equal(found, jax.jit(xla.attention)(*arrays))


def scanned(function, policy, q, k, v):
    """Three layers whose values are those before them: how a stack of blocks uses attention."""
    body = jax.checkpoint(lambda v, _: (function(q, k, v), None), policy=policy)
    return (jax.lax.scan(body, v, None, length=3)[0] ** 2).sum()


@pytest.mark.parametrize("policy", ["everything_saveable", "nothing_saveable"])
def test_on_a_cpu_layers_and_their_gradients_are_xlas_to_the_bit(policy):
    arrays = qkv(LONG)
    gradients = [
        jax.jit(
            jax.grad(
                functools.partial(scanned, f, getattr(jax.checkpoint_policies, policy)),
                argnums=(0, 1, 2),
            )
        )
        for f in (softmax_attention, xla.attention)
    ]
    with one_device():
        found = gradients[0](*arrays)
        # The platforms' branches are one piece of work.
        assert count_flops(gradients[0], *arrays) == count_flops(gradients[1], *arrays)
        assert "tpu_custom_call" in lowered(gradients[0], arrays, "tpu")
    for actual, wanted in zip(found, gradients[1](*arrays), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_short_sequences_are_the_same_program_as_ever():
    arrays = qkv((2, 256, 2, 8))
    with one_device():
        program = str(jax.make_jaxpr(lambda *arrays: softmax_attention(*arrays))(*arrays))
    assert program == str(jax.make_jaxpr(xla.attention)(*arrays))


def test_the_grid_of_a_kernel_is_counted():
    arrays = [jax.ShapeDtypeStruct((2, 2048, 3, 64), jnp.bfloat16)] * 3
    flops = count_flops(splash.attention, *arrays)
    assert flops == count_flops(xla.attention, *arrays) == 4 * 2 * 3 * 64 * 2048**2


def test_a_batch_of_batches():
    arrays = [jnp.stack([x, 2 * x]) for x in qkv(LONG)]
    with one_device():
        found = jax.jit(jax.vmap(lambda *arrays: softmax_attention(*arrays)))(*arrays)
        assert "tpu_custom_call" in lowered(jax.vmap(softmax_attention), arrays, "tpu")
    expected = [xla.attention(*(x[i] for x in arrays)) for i in range(2)]
    np.testing.assert_allclose(found, jnp.stack(expected), rtol=1e-5, atol=1e-5)


def test_it_says_what_it_picked(caplog):
    with caplog.at_level(logging.DEBUG, "dit_jax.kernels.softmax_attention"), one_device():
        softmax_attention(*qkv(LONG))
        softmax_attention(*qkv((1, 256, 2, 8)))
    assert [record.getMessage() for record in caplog.records] == [
        "softmax attention of float32 (1, 1024, 2, 8): splash on tpu, else xla",
        "softmax attention of float32 (1, 256, 2, 8): xla",
    ]


def test_a_mixer_of_an_older_checkpoint_picks_by_itself():
    old = {"class": "dit_jax.attention.full.Full", "fields": {}}
    assert serialization.from_json(old) == Full() == Full("auto")
    assert serialization.from_json(serialization.to_json(Full("xla"))) == Full("xla")
