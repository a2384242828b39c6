"""The discriminator's heads equal their twin, state and all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.training.reconstruction.discriminator import (
    SPECTRAL,
    DiscriminatorHeads,
    SpectralConv,
)

HEADS, BATCH, TOKENS, CHANNELS = 2, 2, 12, 6
SIZE = 9


def features(seed=0):
    """Of two layers, far from normalised."""
    rng = np.random.default_rng(seed)
    shape = (HEADS, BATCH, TOKENS, CHANNELS)
    return list((3 + 2 * rng.normal(size=shape)).astype(np.float32))


@functools.partial(jax.jit, static_argnames="iterate")
def run(params, spectral, layers, weight, iterate):
    """Logits, what became of the state, and gradients of a weighted sum."""

    def logits(params, layers):
        variables = {"params": params, SPECTRAL: spectral}
        mutable = [SPECTRAL] if iterate else []
        found, changed = DiscriminatorHeads().apply(variables, layers, mutable=mutable)
        return found, changed.get(SPECTRAL, spectral)

    found, pull_back, changed = jax.vjp(logits, params, layers, has_aux=True)
    return found, changed, pull_back(weight)


def random_variables():
    abstract = jax.eval_shape(DiscriminatorHeads().init, jax.random.key(0), features())
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)


def logits_of(variables, layers):
    return run(variables["params"], variables[SPECTRAL], layers, weights(), False)[0]


def weights(seed=1):
    return np.random.default_rng(seed).normal(size=(BATCH, HEADS * TOKENS)).astype(np.float32)


def ours(state):
    """A twin's state dict, or its gradients, as parameters and the state of the norms."""
    state = {key: np.asarray(value).copy() for key, value in state.items()}
    places = {"conv_0": "0.0", "conv_1": "1.fn.0", "logit": "2"}
    norms = {"norm_0": "0.1", "norm_1": "1.fn.1"}
    params, spectral = {}, {}
    for i in range(HEADS):
        head, vectors = {}, {}
        for name, place in places.items():
            key = f"heads.{i}.{place}"
            kernel = state[f"{key}.weight_orig"]
            head[name] = {"kernel": kernel.transpose(2, 1, 0), "bias": state[f"{key}.bias"]}
            if f"{key}.weight_u" in state:
                right = state[f"{key}.weight_v"].reshape(kernel.shape[1:]).T
                vectors[name] = {"left": state[f"{key}.weight_u"], "right": right}
        for name, place in norms.items():
            key = f"heads.{i}.{place}"
            head[name] = {"scale": state[f"{key}.weight"], "bias": state[f"{key}.bias"]}
        params[f"head_{i}"], spectral[f"head_{i}"] = head, vectors
    return params, spectral


def assert_close(value, expected, tolerance):
    """Equal leaf by leaf, up to a share of the leaf's largest value.

    Biases before a norm have gradients of nothing but rounding: it is a share of 1 at least.
    """
    assert jax.tree.structure(value) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(value), jax.tree.leaves(expected)):
        assert leaf.shape == other.shape
        assert np.abs(leaf - other).max() <= tolerance * max(np.abs(other).max(), 1)


def test_logits_gradients_and_state_are_the_twins_after_each_call():
    torch = pytest.importorskip("torch")
    from tests.torch_twins.rae_losses import Dino, DinoDiscriminator, randomise_

    dino = Dino(8, 4, CHANNELS, 2, 1, key_depths=(0,))
    twin = randomise_(DinoDiscriminator(dino, SIZE), seed=0)
    twin.backbone = (lambda x: x,)  # The heads alone.
    params, spectral = ours(twin.state_dict())
    for number, iterate in enumerate((False, True, True, False)):
        twin.train(iterate).zero_grad()
        layers = features(number)
        inside = [torch.tensor(x).transpose(1, 2).requires_grad_() for x in layers]
        theirs = twin(inside)
        (theirs * torch.tensor(weights())).sum().backward()
        logits, spectral, slopes = run(params, spectral, layers, weights(), iterate)
        assert_close(logits, theirs.detach().numpy(), 1e-5)
        assert_close(spectral, ours(twin.state_dict())[1], 1e-5)
        gradients = {name: parameter.grad for name, parameter in twin.named_parameters()}
        expected = ours(gradients)[0], [x.grad.transpose(1, 2).numpy() for x in inside]
        assert_close(slopes, expected, 1e-4)


def test_a_convolution_alone_is_the_twins():
    """The norms in a head hide its scale, and which vectors its gradient takes for constants."""
    torch = pytest.importorskip("torch")
    from tests.torch_twins.rae_losses import SpectralConv1d, randomise_

    twin = randomise_(SpectralConv1d(CHANNELS, 5, SIZE), seed=0).train()
    x = features()[0]
    weight = np.random.default_rng(1).normal(size=(BATCH, TOKENS, 5)).astype(np.float32)
    state = {name: value.numpy().copy() for name, value in twin.state_dict().items()}
    theirs = twin(torch.tensor(x).transpose(1, 2)).transpose(1, 2)
    (theirs * torch.tensor(weight)).sum().backward()

    @jax.jit
    def ours(kernel, x):
        right = state["weight_v"].reshape(CHANNELS, SIZE).T
        vectors = {"left": state["weight_u"], "right": right}
        variables = {"params": {"kernel": kernel, "bias": state["bias"]}, SPECTRAL: vectors}
        out, _ = SpectralConv(5, SIZE).apply(variables, x, mutable=[SPECTRAL])
        return (out * weight).sum(), out

    kernel = state["weight_orig"].transpose(2, 1, 0)
    (_, out), slope = jax.value_and_grad(ours, has_aux=True)(kernel, x)
    assert_close(out, theirs.detach().numpy(), 1e-5)
    assert_close(slope, twin.weight_orig.grad.numpy().transpose(2, 1, 0), 1e-4)


def test_iterations_make_the_largest_singular_value_one():
    conv = SpectralConv(5)
    eye = jnp.eye(4)[None]
    variables = conv.init(jax.random.key(0), eye)
    bias = variables["params"]["bias"]

    @jax.jit
    def improve(spectral):
        out, changed = conv.apply(variables | {SPECTRAL: spectral}, eye, mutable=[SPECTRAL])
        return jnp.linalg.norm(out[0] - bias, ord=2), changed[SPECTRAL]

    norms, spectral = [], variables[SPECTRAL]
    for _ in range(60):
        norm, spectral = improve(spectral)
        norms.append(float(norm))
    assert norms[0] > 1.01
    # The estimate comes from below, and comes closer.
    assert np.all(np.diff(norms) < 1e-6) and norms[-1] == pytest.approx(1, abs=1e-4)


def test_a_fresh_convolution_is_as_pytorch_starts_it():
    variables = SpectralConv(8, SIZE).init(jax.random.key(0), jnp.zeros((1, TOKENS, CHANNELS)))
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    bound = (SIZE * CHANNELS) ** -0.5
    assert kernel.shape == (SIZE, CHANNELS, 8) and bias.shape == (8,)
    assert 0.95 * bound < np.abs(kernel).max() <= bound and np.abs(bias).max() <= bound
    assert np.std(kernel) == pytest.approx(bound / 3**0.5, rel=0.1)
    left, right = variables[SPECTRAL]["left"], variables[SPECTRAL]["right"]
    assert left.shape == (8,) and right.shape == (SIZE, CHANNELS)
    assert np.linalg.norm(left) == pytest.approx(1) == np.linalg.norm(right)


def test_samples_do_not_see_each_other():
    """Norms are over a sample's tokens, so that the layout of a batch over devices is free."""
    variables, layers = random_variables(), features()
    before = logits_of(variables, layers)
    after = logits_of(variables, [x * np.float32([1, 5])[:, None, None] for x in layers])
    np.testing.assert_array_equal(before[0], after[0])
    # The second one's scale is normalised away.
    np.testing.assert_allclose(before[1], after[1], atol=1e-3)


def test_tokens_form_a_ring():
    variables, layers = random_variables(), features()
    logits = logits_of(variables, layers).reshape(BATCH, HEADS, TOKENS)
    turned = logits_of(variables, [np.roll(x, 3, axis=1) for x in layers])
    expected = np.roll(logits, 3, axis=2).reshape(BATCH, -1)
    np.testing.assert_allclose(turned, expected, rtol=1e-4, atol=1e-4)
