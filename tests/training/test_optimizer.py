import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.training.optimizer import AdamW, Constant, Cosine, Linear

PARAMS = {"a": np.array([1.0, -2.0, 0.5], np.float32), "b": np.array([[3.0]], np.float32)}
GRADS = [
    {"a": np.array([0.1, -0.3, 2.0], np.float32), "b": np.array([[-0.02]], np.float32)},
    {"a": np.array([-0.2, 0.4, 1.0], np.float32), "b": np.array([[0.5]], np.float32)},
    {"a": np.array([0.0, 1.4, -1.0], np.float32), "b": np.array([[0.1]], np.float32)},
]


def rates(schedule, steps, at, peak=2.0):
    built = schedule.build(peak, steps)
    return [float(built(step)) for step in at]


def test_a_constant_rate_is_constant():
    assert rates(Constant(), 100, [0, 1, 50, 99, 1000]) == [2.0] * 5


def test_warm_up_is_a_straight_line_to_the_peak():
    found = rates(Constant(warmup=10), 100, [0, 1, 5, 9, 10, 11, 99])
    np.testing.assert_allclose(found, [0, 0.2, 1.0, 1.8, 2.0, 2.0, 2.0], rtol=1e-6)


def test_a_cosine_goes_from_the_peak_to_zero():
    found = rates(Cosine(), 100, [0, 25, 50, 75, 100])
    expected = [2.0, 1 + np.cos(np.pi / 4), 1.0, 1 - np.cos(np.pi / 4), 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_cosine_after_warm_up_ends_with_the_run():
    found = rates(Cosine(warmup=20), 100, [0, 10, 20, 60, 100])
    np.testing.assert_allclose(found, [0, 1.0, 2.0, 1.0, 0.0], rtol=1e-5, atol=1e-6)


def test_a_cosine_can_end_above_zero():
    found = rates(Cosine(warmup=20, final=0.1), 100, [20, 60, 100, 10_000])
    np.testing.assert_allclose(found, [2.0, 1.1, 0.2, 0.2], rtol=1e-5)


def test_a_line_leads_from_the_peak_to_the_last_rate():
    schedule = Linear(warmup=10, start=20, stop=60, final=0.5)
    found = rates(schedule, 100, [0, 10, 30, 50, 70, 99])
    np.testing.assert_allclose(found, [0, 2.0, 2.0, 1.5, 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("schedule", [Constant(warmup=50), Cosine(warmup=50)])
def test_a_run_may_end_within_its_warm_up(schedule):
    np.testing.assert_allclose(rates(schedule, 10, [0, 9]), [0, 0.36], rtol=1e-6)


def run(optimizer, steps=10):
    transformation = optimizer.build(steps)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = transformation.init(params)
    for grads in GRADS:
        updates, state = transformation.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def adamw_by_hand(rate, b1, b2, eps, weight_decay, scale=lambda grads: 1.0):
    """Loshchilov & Hutter, arXiv 1711.05101, algorithm 2, in float64; rate(step from 0)."""
    result = {}
    for name, start in PARAMS.items():
        p = start.astype(np.float64)
        m, v = np.zeros_like(p), np.zeros_like(p)
        for i, grads in enumerate(GRADS):
            g = grads[name].astype(np.float64) * scale(grads)
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g**2
            m_hat, v_hat = m / (1 - b1 ** (i + 1)), v / (1 - b2 ** (i + 1))
            p = p - rate(i) * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p)
        result[name] = p
    return result


def assert_close(found, expected):
    # 1 - 0.999 keeps four digits or five in float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), found, expected)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(("b1", "b2", "eps"), [(0.9, 0.999, 1e-8), (0.8, 0.95, 1e-2)])
def test_adamw_is_its_formula(b1, b2, eps, weight_decay):
    optimizer = AdamW(0.1, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    assert_close(run(optimizer), adamw_by_hand(lambda i: 0.1, b1, b2, eps, weight_decay))


def test_adamw_follows_its_schedule():
    optimizer = AdamW(0.1, schedule=Cosine(warmup=2), weight_decay=0.3)
    rate = {0: 0.0, 1: 0.05, 2: 0.1}.get
    assert_close(run(optimizer), adamw_by_hand(rate, 0.9, 0.999, 1e-8, 0.3))


def test_adamw_is_torchs():
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(p, requires_grad=True) for name, p in PARAMS.items()}
    twin = torch.optim.AdamW(tensors.values(), 0.1, (0.8, 0.95), 1e-3, weight_decay=0.3)
    for grads in GRADS:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[name])
        twin.step()
    found = run(AdamW(0.1, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.3))
    assert_close(found, {name: tensor.detach().numpy() for name, tensor in tensors.items()})


def test_clipping_and_schedules_may_change_when_a_run_goes_on():
    changed = AdamW(0.2, schedule=Cosine(warmup=2), clip_norm=1.5, weight_decay=0.3)
    states = [optimizer.build(10).init(PARAMS) for optimizer in (AdamW(), changed)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def norm(grads):
    return np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in grads.values()))


def test_gradients_are_clipped_to_a_global_norm():
    """Norms are about 2.03, 1.20 and 1.72: the second is left alone."""
    optimizer = AdamW(0.1, b1=0.8, b2=0.95, clip_norm=1.5)
    expected = adamw_by_hand(
        lambda i: 0.1, 0.8, 0.95, 1e-8, 0.0, lambda grads: min(1.0, 1.5 / norm(grads))
    )
    assert [norm(grads) > 1.5 for grads in GRADS] == [True, False, True]
    assert_close(run(optimizer), expected)
    unclipped = run(AdamW(0.1, b1=0.8, b2=0.95))
    assert np.abs(run(optimizer)["a"] - unclipped["a"]).max() > 1e-3


def test_the_defaults_are_dits():
    built = AdamW()
    assert (built.learning_rate, built.b1, built.b2, built.eps) == (1e-4, 0.9, 0.999, 1e-8)
    assert built.weight_decay == 0 and built.clip_norm is None and built.schedule == Constant()
