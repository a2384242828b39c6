import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from dit_jax.flops import count_flops
from dit_jax.kernels.linear_attention import linear_attention, reference, tpu, xla

OPTIONS = {"offset": 0.01, "eps": 1e-3}


def operands(batch=2, tokens=12, heads=3, width=4, dtype=jnp.float32):
    """Queries, keys, values and the gradient of the result."""
    rng = np.random.default_rng(0)
    shape = batch, tokens, heads, width
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]


def compiled(function, first, *arrays, **options):
    return jax.jit(functools.partial(function, first, **options))(*arrays)


def value_and_gradients(function, q, k, v, dout, **options):
    out, pull = jax.vjp(functools.partial(function, **options), q, k, v)
    return out, *pull(dout.astype(out.dtype))


def expected(*arrays, **options):
    return compiled(value_and_gradients, reference.attention, *arrays, **options)


def two_passes(backend, q, k, v, dout, **options):
    out, state = backend.forward(q, k, v, **options)
    return out, *backend.backward(q, k, v, state, dout, **options)


def assert_close(found, wanted, tolerance=1e-5):
    """Within a share of the largest entry, or of 1: gradients of a few tokens are differences."""
    for actual, right in zip(found, wanted, strict=True):
        error = np.abs(np.asarray(actual, np.float32) - np.asarray(right, np.float32)).max()
        assert error <= tolerance * max(np.abs(right).max(), 1.0)


def test_the_definition_is_a_double_loop():
    q, k, v, _ = (np.asarray(x, np.float64) for x in operands(1, 5, 1, 3))
    phi = lambda x: np.maximum(x, 0) + 0.01  # noqa: E731
    wanted = np.zeros_like(v)
    for i in range(5):
        weights = np.array([phi(q[0, i, 0]) @ phi(k[0, j, 0]) for j in range(5)])
        wanted[0, i, 0] = weights @ v[0, :, 0] / (weights.sum() + 1e-3)
    found = reference.attention(*operands(1, 5, 1, 3)[:3], **OPTIONS)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@example(batch=1, tokens=1, heads=1, width=1, offset=0.0)
@example(batch=1, tokens=37, heads=2, width=5, offset=1e-6)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 2),
    tokens=st.integers(1, 40),
    heads=st.integers(1, 3),
    width=st.integers(1, 9),
    offset=st.sampled_from([0.0, 1e-6, 0.5]),
)
def test_values_and_gradients_are_those_of_the_definition(batch, tokens, heads, width, offset):
    arrays = operands(batch, tokens, heads, width)
    options = {"offset": offset, "eps": 1e-3}
    found = compiled(value_and_gradients, linear_attention, *arrays, **options)
    assert_close(found, expected(*arrays, **options))


@pytest.mark.parametrize("offset", [0.0, 1e-6])
def test_the_defaults_are_of_use(offset):
    """With a denominator's addend that float32 does not feel, and rows that see nothing."""
    arrays = operands()
    q = arrays[0].at[:, 3].set(-1.0)
    options = {"offset": offset, "eps": 1e-8}
    found = compiled(value_and_gradients, linear_attention, q, *arrays[1:], **options)
    assert_close(found, expected(q, *arrays[1:], **options))
    if not offset:
        np.testing.assert_array_equal(found[0][:, 3], 0)
        np.testing.assert_array_equal(found[1][:, 3], 0)


@pytest.mark.parametrize(
    ("batch", "tokens", "heads"),
    [
        (1, 300, 1),  # Three blocks of 128, of which the last is not full.
        (1, 256, 2),  # Two full blocks.
        (2, 30, 3),  # Six heads in steps of four: the last step is not full.
        (1, 1, 1),
    ],
)
def test_the_tpu_kernels_equal_the_definition(batch, tokens, heads, monkeypatch):
    monkeypatch.setattr(tpu, "_ELEMENTS", 8 * 128)
    arrays = operands(batch, tokens, heads, width=8)
    found = compiled(two_passes, tpu, *arrays, interpret=True, **OPTIONS)
    assert_close(found, expected(*arrays, **OPTIONS))


def test_what_lies_after_the_last_token_does_not_matter(monkeypatch):
    """A TPU leaves anything there, and the interpreter can be told to leave what is worst."""
    monkeypatch.setattr(tpu, "_ELEMENTS", 8 * 128)
    arrays = operands(1, 130, 1, width=8)
    interpret = pltpu.InterpretParams(uninitialized_memory="nan")
    found = compiled(two_passes, tpu, *arrays, interpret=interpret, **OPTIONS)
    assert_close(found, expected(*arrays, **OPTIONS))


@pytest.mark.parametrize("name", ["xla", "tpu"])
def test_bfloat16_is_summed_in_float32(name, monkeypatch):
    """The error is that of rounding what goes into a product, however many tokens there are."""
    monkeypatch.setattr(tpu, "_ELEMENTS", 8 * 1024)
    arrays = operands(1, 4096, 1, width=8, dtype=jnp.bfloat16)
    backend, more = (tpu, {"interpret": True}) if name == "tpu" else (xla, {})
    found = compiled(two_passes, backend, *arrays, **OPTIONS, **more)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
    wide = [x.astype(jnp.float32) for x in arrays]
    assert_close(found, expected(*wide, **OPTIONS), tolerance=2**-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_platform_that_is_lowered_for_decides(platform, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # Over several, a layout must be known.
    run = functools.partial(value_and_gradients, linear_attention)
    lowered = jax.jit(run).trace(*operands(width=64)).lower(lowering_platforms=(platform,))
    kernels = lowered.as_text().count("tpu_custom_call")
    assert kernels == (4 if platform == "tpu" else 0)


def cost_estimates(function, *args):
    """Of all Pallas kernels of a program."""
    found, pending = [], [jax.make_jaxpr(function)(*args).jaxpr]
    while pending:
        for equation in pending.pop().eqns:
            if equation.primitive.name == "pallas_call":
                found.append(equation.params["cost_estimate"])
    return found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_array_of_tokens_is_moved_once(dtype):
    """Forward q, k, v and the result; backward these but the result, and four gradients."""
    arrays = operands(1, 512, 2, 64, dtype)
    costs = cost_estimates(functools.partial(two_passes, tpu, **OPTIONS), *arrays)
    assert len(costs) == 4
    tokens, state = arrays[0].size * arrays[0].dtype.itemsize, 2 * 64 * 65 * 4
    # The state is written and read, in each direction, and once more to the queries' gradient.
    assert sum(cost.bytes_accessed for cost in costs) == (4 + 7) * tokens + 5 * state
    # Backward, the query side meets the state again, as forward.
    assert [cost.flops / (2 * arrays[0].size * 65) for cost in costs] == [1, 1, 3, 2]


def test_work_is_linear_in_the_tokens():
    run = functools.partial(value_and_gradients, linear_attention)
    flops = [
        count_flops(run, *[jax.ShapeDtypeStruct((1, n, 2, 16), jnp.float32)] * 4)
        for n in (64, 256, 1024)
    ]
    slopes = np.diff(np.log(flops)) / np.log(4)
    np.testing.assert_allclose(slopes, 1.0, atol=1e-9)


def test_a_batch_of_attentions_is_the_attentions():
    arrays = operands()
    pairs = [jnp.stack([x, 2 * x]) for x in arrays]
    run = functools.partial(value_and_gradients, linear_attention, **OPTIONS)
    for number, found in enumerate(zip(*jax.jit(jax.vmap(run))(*pairs))):
        assert_close(found, jax.jit(run)(*(x[number] for x in pairs)))
