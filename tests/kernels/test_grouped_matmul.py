import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dit_jax.flops import count_flops
from dit_jax.kernels.grouped_matmul import blocked, grouped_matmul, ragged, reference

ROWS, GROUPS, WIDTH, FEATURES = 40, 5, 6, 7
BACKENDS = {"blocked": blocked, "ragged": ragged}


def operands(rows=ROWS, groups=GROUPS, width=WIDTH, features=FEATURES, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = (rows, width), (groups, width, features), (rows, features)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def loop(x, kernels, sizes):
    """Each group of rows times its matrix, in float64."""
    x, kernels = np.asarray(x, np.float64), np.asarray(kernels, np.float64)
    y, start = np.zeros((len(x), kernels.shape[-1])), 0
    for kernel, size in zip(kernels, sizes):
        y[start : start + size] = x[start : start + size] @ kernel
        start += size
    return y


def outer_loop(x, dy, sizes):
    ends = np.cumsum(sizes)
    pieces = [slice(end - size, end) for end, size in zip(ends, sizes)]
    return np.stack([np.asarray(x)[p].T @ np.asarray(dy)[p] for p in pieces])


def value_and_gradients(function, x, kernels, sizes, dy):
    y, pull = jax.vjp(lambda x, kernels: function(x, kernels, sizes), x, kernels)
    return y, *pull(dy)


@functools.cache
def compiled(function):
    return jax.jit(functools.partial(value_and_gradients, function))


@functools.cache
def compiled_backend(name, part):
    return jax.jit(getattr(BACKENDS[name], part))


@st.composite
def group_sizes(draw):
    """Sizes of the groups, in any order, whose sum is at most the number of rows."""
    cuts = draw(st.lists(st.integers(0, ROWS), min_size=GROUPS, max_size=GROUPS))
    return tuple(int(size) for size in np.diff([0, *sorted(cuts)]))


edge_cases = [
    (0, 0, 0, 0, 0),
    (ROWS, 0, 0, 0, 0),
    (0, 0, 0, 0, ROWS),
    (0, 0, ROWS, 0, 0),
    (8, 8, 8, 8, 8),
    (1, 0, 30, 0, 1),
    (16, 0, 16, 1, 0),
    (0, 17, 15, 7, 1),
]


def with_edge_cases(test):
    for sizes in edge_cases:
        test = example(sizes)(test)
    return settings(max_examples=60, deadline=None, derandomize=True)(given(group_sizes())(test))


@with_edge_cases
def test_values_and_gradients_are_those_of_the_definition(sizes):
    x, kernels, dy = operands()
    sizes_array = jnp.asarray(sizes, jnp.int32)
    found = compiled(grouped_matmul)(x, kernels, sizes_array, dy)
    expected = compiled(reference.product)(x, kernels, sizes_array, dy)
    # The definition itself, by a loop.
    np.testing.assert_allclose(expected[0], loop(x, kernels, sizes), rtol=1e-5, atol=1e-5)
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)
    y, dx, dkernels = found
    # Rows that belong to nobody, and matrices without rows.
    np.testing.assert_array_equal(y[sum(sizes) :], 0)
    np.testing.assert_array_equal(dx[sum(sizes) :], 0)
    np.testing.assert_array_equal(dkernels[np.array(sizes) == 0], 0)


@with_edge_cases
@pytest.mark.parametrize("name", BACKENDS)
def test_each_backend_equals_a_loop(name, sizes):
    x, kernels, dy = operands()
    sizes_array = jnp.asarray(sizes, jnp.int32)
    y = compiled_backend(name, "product")(x, kernels, sizes_array)
    np.testing.assert_allclose(y, loop(x, kernels, sizes), rtol=1e-5, atol=1e-5)
    outer = compiled_backend(name, "outer_product")(x, dy, sizes_array)
    np.testing.assert_allclose(outer, outer_loop(x, dy, sizes), rtol=1e-5, atol=1e-5)
    assert outer.dtype == jnp.float32


def test_on_a_cpu_the_loop_over_blocks_runs():
    x, kernels, _ = operands()
    sizes = jnp.full(GROUPS, 8, jnp.int32)
    compiled_text = jax.jit(grouped_matmul).lower(x, kernels, sizes).compile().as_text()
    assert "while" in compiled_text


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(1, (1,)), (1, (0, 0, 1)), (3, (1, 1)), (700, (600, 100)), (700, (257, 0, 256, 100))],
)
def test_any_number_of_rows_and_blocks(rows, sizes):
    x, kernels, dy = operands(rows, len(sizes))
    y, dx, dkernels = value_and_gradients(grouped_matmul, x, kernels, jnp.asarray(sizes), dy)
    np.testing.assert_allclose(y, loop(x, kernels, sizes), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, loop(dy, kernels.swapaxes(1, 2), sizes), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dkernels, outer_loop(x, dy, sizes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", [grouped_matmul, blocked.product, ragged.product])
def test_what_lies_after_the_last_group_does_not_matter(function):
    x, kernels, _ = operands()
    sizes = jnp.array([3, 0, 9, 4, 1], jnp.int32)
    y = function(x.at[17:].set(jnp.inf), kernels, sizes)
    np.testing.assert_array_equal(y, function(x, kernels, sizes))


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8, 8), (20, 0, 9, 1, 3)])
def test_bfloat16_is_summed_in_float32(sizes):
    """Only the result is rounded, however long the sums are."""
    x, kernels, dy = operands(width=512, features=384, dtype=jnp.bfloat16)
    sizes_array = jnp.asarray(sizes, jnp.int32)
    found = compiled(grouped_matmul)(x, kernels, sizes_array, dy)
    wide = [np.asarray(a, np.float32) for a in (x, kernels, dy)]
    expected = (
        loop(wide[0], wide[1], sizes),
        loop(wide[2], wide[1].swapaxes(1, 2), sizes),
        outer_loop(wide[0], wide[2], sizes),
    )
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == jnp.bfloat16
        # Half a unit in the last place of 8 bits, and float32's own error of the sum.
        actual = np.asarray(actual, np.float32)
        np.testing.assert_allclose(actual, wanted, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8, 8), (0, 33, 1, 2, 0)])
def test_the_backends_agree_in_bfloat16(sizes):
    x, kernels, dy = operands(dtype=jnp.bfloat16)
    sizes = jnp.asarray(sizes, jnp.int32)
    ours, xla = (compiled_backend(name, "product")(x, kernels, sizes) for name in BACKENDS)
    assert ours.dtype == xla.dtype == jnp.bfloat16
    ours, xla = (np.asarray(y, np.float32) for y in (ours, xla))
    np.testing.assert_allclose(ours, xla, rtol=2**-7, atol=1e-5)
    ours, xla = (compiled_backend(name, "outer_product")(x, dy, sizes) for name in BACKENDS)
    np.testing.assert_allclose(ours, xla, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        (512, 8),
        (256, 13),
        (256, 1),
        (64, 8),
    ],
)
def test_a_row_is_counted_once(rows, groups):
    x, kernels, dy = operands(rows, groups)
    sizes = jnp.zeros(groups, jnp.int32)
    product = 2 * rows * WIDTH * FEATURES
    assert count_flops(grouped_matmul, x, kernels, sizes) == product
    gradients = functools.partial(value_and_gradients, grouped_matmul)
    assert count_flops(gradients, x, kernels, sizes, dy) == 3 * product


def test_a_batch_of_products_is_the_products():
    x, kernels, dy = operands()
    sizes = jnp.array([(8, 8, 8, 8, 8), (0, 33, 1, 2, 0)])
    scale = jnp.array([1.0, 2.0])
    run = functools.partial(value_and_gradients, grouped_matmul)
    batched = jax.jit(jax.vmap(lambda sizes, scale: run(scale * x, kernels, sizes, dy)))
    for number, found in enumerate(zip(*batched(sizes, scale))):
        expected = run(scale[number] * x, kernels, sizes[number], dy)
        for actual, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)
