import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import Autoguidance, ClassifierFree

NULL = 10
T = jnp.float32(0.5)


def null_condition(condition):
    return condition | {"label": jnp.full_like(condition["label"], NULL)}


def denoise(x, t, condition):
    """An output that depends on all inputs, twice as wide as x: a variance follows."""
    label = condition["label"].astype(jnp.float32)[:, None, None, None]
    return jnp.concatenate([jnp.sin(x + label * t), x * label + t], axis=-1)


def weak(x, t, condition):
    return 0.5 * denoise(x, t, condition) - 1


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (3, 2, 2, 4))


CONDITION = {"label": jnp.array([1, 4, 7], jnp.int32)}


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_classifier_free_is_its_formula(scale, x):
    guided = ClassifierFree(scale)(denoise, null_condition)(x, T, CONDITION)
    conditional = denoise(x, T, CONDITION)
    unconditional = denoise(x, T, null_condition(CONDITION))
    expected = unconditional + scale * (conditional - unconditional)
    np.testing.assert_allclose(guided[..., :4], expected[..., :4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(guided[..., 4:], conditional[..., 4:], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_autoguidance_is_its_formula(scale, x):
    guided = Autoguidance(scale)(denoise, weak)(x, T, CONDITION)
    strong, poor = denoise(x, T, CONDITION), weak(x, T, CONDITION)
    expected = poor + scale * (strong - poor)
    np.testing.assert_allclose(guided[..., :4], expected[..., :4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(guided[..., 4:], strong[..., 4:], rtol=1e-6)


def wrap(kind, *args, **kwargs):
    guidance = kind(*args, **kwargs)
    return guidance(denoise, null_condition if kind is ClassifierFree else weak)


@pytest.mark.parametrize("kind", [ClassifierFree, Autoguidance])
def test_scale_1_changes_nothing(kind, x):
    guided = wrap(kind, 1.0)(x, T, CONDITION)
    # weak + (strong - weak) rounds.
    np.testing.assert_allclose(guided, denoise(x, T, CONDITION), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [ClassifierFree, Autoguidance])
@pytest.mark.parametrize(
    ("t", "acts"),
    [(0.0, False), (0.19, False), (0.2, True), (0.5, True), (0.7, True), (0.71, False)],
)
def test_guidance_acts_within_its_interval(kind, t, acts, x):
    t = jnp.float32(t)
    interval = (float(np.float32(0.2)), float(np.float32(0.7)))
    guided = jax.jit(wrap(kind, 3.0, interval=interval))(x, t, CONDITION)
    always = wrap(kind, 3.0)(x, t, CONDITION)
    expected = always if acts else denoise(x, t, CONDITION)
    np.testing.assert_allclose(guided, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(always - denoise(x, t, CONDITION)).max() > 0.1 or t == 0


def test_the_whole_of_time_is_the_default_interval(x):
    for t in (0.0, 1.0):
        guided = wrap(Autoguidance, 3.0)(x, jnp.float32(t), CONDITION)
        assert np.abs(guided - denoise(x, jnp.float32(t), CONDITION)).max() > 0.1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_only_the_first_channels_are_guided(channels, x):
    guided = ClassifierFree(3.0, channels=channels)(denoise, null_condition)(x, T, CONDITION)
    every = ClassifierFree(3.0)(denoise, null_condition)(x, T, CONDITION)
    plain = denoise(x, T, CONDITION)
    np.testing.assert_allclose(guided[..., :channels], every[..., :channels], rtol=1e-6)
    np.testing.assert_allclose(guided[..., channels:], plain[..., channels:], rtol=1e-5)
    assert (np.abs(every - plain)[..., :4].max(axis=(0, 1, 2)) > 0.1).all()


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_three_channels_equal_the_twins_forward_with_cfg(learn_sigma):
    torch = pytest.importorskip("torch")
    from dit_jax.models import DiT
    from tests.torch_twins import dit, to_jax

    kind = dit.DiT if learn_sigma else dit.SiT
    twin = dit.randomise_(kind(4, 2, 4, 16, 1, 2, num_classes=NULL), seed=0)
    model = DiT(2, 16, 1, 2, num_classes=NULL)
    params = to_jax.dit_params(twin.state_dict(), 2)
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(3, 4, 4, 4)).astype(np.float32), np.float32(0.5)
    labels = np.concatenate([CONDITION["label"], [NULL] * 3])
    with torch.no_grad():
        pair = torch.tensor(np.concatenate([to_jax.to_nchw(x)] * 2))
        y = torch.tensor(labels).long()
        expected = twin.forward_with_cfg(pair, torch.full((6,), 10 * float(t)), y, 4.0)[:3]

    def run(x, t, condition):
        t = jnp.full(len(x), 10 * t)  # The model's own clock.
        output = model.apply({"params": params}, x, t, condition).prediction
        return output if learn_sigma else output[..., :4]

    guidance = ClassifierFree(4.0, channels=3)
    guided = jax.jit(guidance(run, model.null_condition))(x, t, CONDITION)
    expected = to_jax.to_nhwc(expected)
    # Two float32 forward passes, and their difference times 4.
    assert np.abs(guided - expected).max() <= 2e-5 * np.abs(expected).max()


def test_guided_denoisers_nest(x):
    inner = Autoguidance(2.0)(denoise, weak)
    outer = ClassifierFree(3.0)(inner, null_condition)(x, T, CONDITION)
    conditional, unconditional = (inner(x, T, c) for c in (CONDITION, null_condition(CONDITION)))
    expected = unconditional + 3 * (conditional - unconditional)
    np.testing.assert_allclose(outer[..., :4], expected[..., :4], rtol=1e-5, atol=1e-5)
