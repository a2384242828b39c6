import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.models import DiT
from dit_jax.presets import create_model

SMALL = DiT(patch=2, hidden=32, depth=2, heads=4, num_classes=10)

# Depth, width and heads of the paper's models, and the released code's parameter counts at 32x32x4
# latents by patch size. The counts include the position table, which is no parameter here.
PRESETS = {
    "S": (12, 384, 6, {2: 32_963_360, 4: 32_945_024, 8: 33_148_160}),
    "B": (12, 768, 12, {2: 130_512_416, 4: 130_475_648, 8: 130_881_536}),
    "L": (24, 1024, 16, {2: 458_102_816, 4: 458_053_760, 8: 458_594_816}),
    "XL": (28, 1152, 16, {2: 675_129_632, 4: 675_074_432, 8: 675_683_072}),
}


def inputs(batch=3, size=(8, 8), channels=4, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, *size, channels)).astype(np.float32)
    t = rng.integers(0, 1000, batch).astype(np.float32)
    return x, t, {"label": rng.integers(0, classes, batch).astype(np.int32)}


def abstract_params(model, size=32, channels=4):
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t, {"label": label})["params"]


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def randomise(params, seed=0, scale=0.1):
    """Normal values everywhere, so that no zero initialisation hides a term."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, params)


@pytest.fixture(scope="module")
def initial():
    x, t, condition = inputs()
    return jax.jit(SMALL.init)(jax.random.key(0), x, t, condition)["params"]


@pytest.fixture(scope="module")
def random_params(initial):
    return randomise(initial)


@pytest.fixture(scope="module")
def forward():
    return jax.jit(lambda params, *args: SMALL.apply({"params": params}, *args).prediction)


@pytest.fixture(scope="module")
def train_forward():
    def run(params, x, t, condition, key):
        rngs = {"dropout": key}
        return SMALL.apply({"params": params}, x, t, condition, train=True, rngs=rngs).prediction

    return jax.jit(run)


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", PRESETS)
def test_a_presets_parameter_count_is_the_papers(size, patch):
    depth, hidden, heads, counts = PRESETS[size]
    model = create_model(f"DiT-{size}/{patch}")
    assert (model.depth, model.hidden, model.heads) == (depth, hidden, heads)
    table = (32 // patch) ** 2 * hidden
    assert model.frozen_parameters((32, 32, 4)) == table
    assert count(abstract_params(model)) + table == counts[patch]
    assert create_model(f"SiT-{size}/{patch}") == model


def test_the_defaults_are_xl_2_and_its_count_at_512_pixels():
    assert DiT() == create_model("DiT-XL/2")
    assert count(abstract_params(DiT(), size=64)) + 32**2 * 1152 == 676_014_368


def test_parameters_are_float32_and_stacked_over_depth():
    params = abstract_params(DiT(dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params["blocks"])} == {28}


@pytest.mark.parametrize(
    ("patch", "size", "heads", "channels", "learn_sigma", "latest", "tolerance"),
    [
        # Two float32 programs that sum in different orders: some ten roundings of 6e-8.
        (2, (8, 8), 4, 4, True, 20, 1e-5),
        (2, (8, 12), 2, 3, False, 1, 1e-5),
        (1, (4, 6), 8, 4, True, 20, 1e-5),
        (4, (12, 8), 1, 1, True, 20, 1e-5),
        # The angles of the time's features reach 1000, where a float32 is known to 6e-5 only.
        (2, (8, 8), 4, 4, True, 1000, 1e-4),
    ],
)
def test_equals_the_pytorch_twin(patch, size, heads, channels, learn_sigma, latest, tolerance):
    torch = pytest.importorskip("torch")
    from tests.torch_twins import dit, to_jax

    twin = dit.DiT(size, patch, channels, 32, 2, heads, num_classes=10, learn_sigma=learn_sigma)
    dit.randomise_(twin, seed=1)
    with torch.no_grad():  # Larger than the twin's own scale: every branch then matters.
        for name, parameter in twin.named_parameters():
            if name != "pos_embed":
                parameter.mul_(4)
    model = DiT(patch, 32, 2, heads, num_classes=10, learn_sigma=learn_sigma)
    params = to_jax.dit_params(twin.state_dict(), heads)
    x, t, condition = inputs(size=size, channels=channels)
    t = (t / 1000 * latest).astype(np.float32)
    condition["label"][0] = 10  # The null label too.

    x_torch = torch.tensor(to_jax.to_nchw(x), requires_grad=True)
    expected = twin(x_torch, torch.tensor(t), torch.tensor(condition["label"]).long())
    weight = np.random.default_rng(2).normal(size=expected.shape).astype(np.float32)
    (expected * torch.tensor(weight)).sum().backward()
    expected = to_jax.to_nhwc(expected.detach())
    expected_gradient = to_jax.to_nhwc(x_torch.grad)

    def weighted(x):
        prediction = model.apply({"params": params}, x, t, condition).prediction
        return (prediction * to_jax.to_nhwc(weight)).sum(), prediction

    run = jax.jit(jax.value_and_grad(weighted, has_aux=True))
    (_, prediction), gradient = run(jnp.asarray(x))

    assert np.abs(prediction - expected).max() <= tolerance * np.abs(expected).max()
    # The gradient passes every layer twice.
    assert np.abs(gradient - expected_gradient).max() <= 1e-4 * np.abs(expected_gradient).max()


def test_the_twins_state_dict_fills_every_parameter():
    pytest.importorskip("torch")
    from tests.torch_twins import dit, to_jax

    twin = dit.DiT(8, 2, 4, 32, 2, 4, num_classes=10)
    shapes = jax.tree.map(np.shape, to_jax.dit_params(twin.state_dict(), 4))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, abstract_params(SMALL, size=8))


def test_the_initial_output_is_zero(initial, forward):
    prediction = forward(initial, *inputs())
    assert prediction.shape == (3, 8, 8, 8)
    np.testing.assert_array_equal(prediction, 0)


def test_initial_values(initial):
    """Xavier uniform for linear layers, normal(0.02) for embeddings, zero for gates and biases."""
    layers = initial["blocks"]["layers"]
    for params, fan_in, fan_out in [
        (initial["patch_embed"]["kernel"], 2 * 2 * 4, 32),
        (layers["attention"]["qkv"]["kernel"], 32, 3 * 32),
        (layers["attention"]["out"]["kernel"], 32, 32),
        (layers["ffn"]["fc1"]["kernel"], 32, 128),
        (layers["ffn"]["fc2"]["kernel"], 128, 32),
    ]:
        bound = np.sqrt(6 / (fan_in + fan_out))
        # Of over 500 uniform draws the largest comes within 2 % of the bound (1 - 4e-5 of seeds).
        assert 0.98 * bound < np.abs(params).max() <= bound
        # The std of n uniform draws varies by about 0.45 / sqrt(n), here below 2 %: five of them.
        assert np.std(params) == pytest.approx(bound / np.sqrt(3), rel=0.1)
    for params in (
        initial["time_embed"]["fc1"]["kernel"],
        initial["time_embed"]["fc2"]["kernel"],
        initial["label_embed"]["table"]["embedding"],
    ):
        # The smallest has 352 draws: its std varies by 1 / sqrt(704) = 4 %.
        assert np.std(params) == pytest.approx(0.02, rel=0.15)
    zeros = [layers["adaln"], initial["final"]]
    leaves, _ = jax.tree_util.tree_flatten_with_path(initial)
    zeros += [leaf for path, leaf in leaves if path[-1].key == "bias"]
    for leaf in jax.tree.leaves(zeros):
        np.testing.assert_array_equal(leaf, 0)


def test_layers_start_different(initial):
    kernel = initial["blocks"]["layers"]["ffn"]["fc1"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])


def test_label_dropout_replaces_about_a_tenth_by_the_null_label(
    random_params, forward, train_forward
):
    x, t, condition = inputs(batch=1000)
    x, t = np.repeat(x[:1], 1000, 0), np.repeat(t[:1], 1000)
    condition = {"label": np.full(1000, 3, np.int32)}
    key = jax.random.key(1)
    dropped = np.asarray(train_forward(random_params, x, t, condition, key))
    kept = np.asarray(forward(random_params, x, t, condition)[0])
    null = np.asarray(forward(random_params, x, t, SMALL.null_condition(condition))[0])
    to_kept = np.abs(dropped - kept).max(axis=(1, 2, 3))
    to_null = np.abs(dropped - null).max(axis=(1, 2, 3))
    # Each sample is one or the other, to the rounding of equal programs.
    assert np.minimum(to_kept, to_null).max() < 1e-4 < np.abs(kept - null).max()
    # Binomial(1000, 0.1): the std is 9.5; four of them.
    assert abs((to_null < to_kept).sum() - 100) < 38


def test_label_dropout_follows_its_key(random_params, train_forward):
    x, t, condition = inputs(batch=64)
    run = lambda seed: np.asarray(  # noqa: E731
        train_forward(random_params, x, t, condition, jax.random.key(seed))
    )
    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3


def test_without_training_no_label_is_dropped(random_params):
    x, t, condition = inputs()
    model = SMALL.clone(label_dropout=1.0)

    @functools.partial(jax.jit, static_argnums=1)
    def run(condition, train):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply({"params": random_params}, x, t, condition, train, rngs=rngs).prediction

    null = run(model.null_condition(condition), False)
    assert np.abs(run(condition, False) - null).max() > 1e-3
    # The same labels in two programs: equal to rounding.
    np.testing.assert_allclose(run(condition, True), null, rtol=1e-5, atol=1e-5)


def test_the_null_condition_keeps_shapes_and_other_entries():
    condition = {"label": jnp.array([1, 2], jnp.int32), "other": jnp.ones(2)}
    null = SMALL.null_condition(condition)
    np.testing.assert_array_equal(null["label"], [10, 10])
    assert null["label"].dtype == jnp.int32
    np.testing.assert_array_equal(null["other"], condition["other"])
    np.testing.assert_array_equal(condition["label"], [1, 2])


def test_an_unconditional_model_ignores_the_condition():
    model = DiT(patch=4, hidden=16, depth=1, heads=2, num_classes=0)
    x, t, condition = inputs()
    params = jax.eval_shape(model.init, jax.random.key(0), x, t, {})["params"]
    assert "label_embed" not in params
    run = jax.jit(lambda *args: model.apply({"params": randomise(params)}, *args).prediction)
    np.testing.assert_array_equal(run(x, t, {}), run(x, t, condition))
    assert np.abs(run(x, t, {})).max() > 0
    assert model.null_condition(condition) is condition


@pytest.mark.parametrize("classes", [1, 7, 1000])
def test_the_label_table_has_a_row_more_than_classes(classes):
    params = abstract_params(SMALL.clone(num_classes=classes))
    assert params["label_embed"]["table"]["embedding"].shape == (classes + 1, 32)


def test_every_input_matters(random_params, forward):
    x, t, condition = inputs()
    base = forward(random_params, x, t, condition)
    other_label = {"label": (condition["label"] + 1) % 10}
    for changed in [(x + 0.1, t, condition), (x, t + 7, condition), (x, t, other_label)]:
        difference = np.abs(forward(random_params, *changed) - base).max(axis=(1, 2, 3))
        assert difference.min() > 1e-4


def test_samples_do_not_see_each_other(random_params, forward):
    x, t, condition = inputs()
    x2, t2, condition2 = inputs(seed=1)
    x2[0], t2[0], condition2["label"][0] = x[0], t[0], condition["label"][0]
    first = forward(random_params, x, t, condition)[0]
    np.testing.assert_array_equal(first, forward(random_params, x2, t2, condition2)[0])


def test_bfloat16_compute_is_close_and_its_output_float32(random_params, forward):
    x, t, condition = inputs()
    exact = forward(random_params, x, t, condition)
    model = SMALL.clone(dtype="bfloat16")
    run = jax.jit(lambda *args: model.apply({"params": random_params}, *args).prediction)
    rough = run(x, t, condition)
    assert rough.dtype == exact.dtype == jnp.float32
    # bfloat16 rounds to 2^-9 = 0.2 %; a dozen roundings in a row add up to about 1 %.
    error = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.03


def test_bfloat16_matmuls_are_bfloat16(random_params):
    model = SMALL.clone(dtype="bfloat16")
    call = lambda *args: model.apply({"params": random_params}, *args).prediction  # noqa: E731
    text = str(jax.make_jaxpr(call)(*inputs()))
    assert "bf16[3,16,128] = dot_general" in text  # The MLP of a block.


@pytest.mark.parametrize(
    ("model", "size", "condition", "message"),
    [
        (SMALL, (7, 8), True, r"7x8.*2x2"),
        (SMALL, (8, 9), True, r"8x9.*2x2"),
        (SMALL, (8, 8), False, r"10 classes.*label"),
        (SMALL.clone(heads=5), (8, 8), True, r"32.*5 heads"),
        (SMALL.clone(hidden=6, heads=2), (8, 8), True, r"6.*multiple of 4"),
    ],
)
def test_bad_input_is_one_line_that_says_what_was_wrong(model, size, condition, message):
    x, t, labels = inputs(size=size)
    with pytest.raises(InputError, match=message) as error:
        jax.eval_shape(model.init, jax.random.key(0), x, t, labels if condition else {})
    assert "\n" not in str(error.value)
