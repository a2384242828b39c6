"""Sharing by a denoiser of two small halves; that of DDT is in tests/test_sharing.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import (
    DDIM,
    DDPM,
    ClassifierFree,
    Dopri5,
    Euler,
    EulerMaruyama,
    Flow,
    Gaussian,
    Heun,
    HeunSDE,
    Sharing,
    cache_first_half,
    record,
)
from dit_jax.errors import InputError
from tests.diffusion.diffusion_helpers import jit, start

NULL = 10
CONDITION = {"label": jnp.array([1, 4], jnp.int32)}
SOLVERS = [
    (Flow(), Euler(4), 4),
    (Flow(), Heun(3), 6),
    (Flow(), EulerMaruyama(4), 4),
    (Flow(), EulerMaruyama(4, last_step="none"), 3),
    (Flow(), HeunSDE(4, last_step="euler"), 7),
    (Flow(), HeunSDE(4, last_step="tweedie"), 7),
    (Gaussian(steps=50, variance="fixed_small"), DDIM(5), 5),
    (Gaussian(steps=50, variance="fixed_small"), DDPM("2,3"), 5),
]


def encode(x, t, condition):
    return jnp.sin(3 * x + 0.1 * condition["label"][:, None, None, None] + t)


def decode(x, t, condition, s):
    del condition
    return s * x + jnp.cos(2 * t)


def plain(x, t, condition):
    return decode(x, t, condition, encode(x, t, condition))


def null_condition(condition):
    return {"label": jnp.full_like(condition["label"], NULL)}


def run(process, solver, denoise):
    x, keys = start()
    return jit(lambda x: solver(process, denoise, x, CONDITION, keys))(x)


def shared(sharing, solver, guidance=None, halves=(encode, decode), process=None):
    denoise = cache_first_half(*halves)
    if guidance is not None:
        denoise = guidance(denoise, null_condition)
    return run(process or Flow(), solver, sharing(denoise, solver.evaluations(process or Flow())))


def counted(function):
    """The function, and a list that grows by one element when it is run, not when it is traced."""
    calls = []

    @functools.wraps(function)
    def counting(*args):
        jax.debug.callback(lambda: calls.append(1))
        return function(*args)

    return counting, calls


def by_hand(refreshes, scale=1.0, interval=(0.0, 1.0)):
    """Euler's method in a Python loop that keeps what it encoded, with and without condition."""
    x, _ = start()
    grid = np.linspace(1, 0, len(refreshes) + 1, dtype=np.float32)
    kept = {}
    for now, then, refresh in zip(grid[:-1], grid[1:], refreshes):
        conditions = {"given": CONDITION, "null": null_condition(CONDITION)}
        if refresh:
            kept = {name: encode(x, now, c) for name, c in conditions.items()}
        given, null = (decode(x, now, c, kept[name]) for name, c in conditions.items())
        inside = interval[0] <= now <= interval[1]
        x = x + (then - now) * (null + scale * (given - null) if inside else given)
    return x


def assert_same(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


@pytest.mark.parametrize(
    ("process", "solver", "count"), SOLVERS, ids=lambda value: type(value).__name__
)
def test_refreshes_everywhere_are_no_sharing(process, solver, count):
    """To rounding: the two programs are fused differently."""
    assert solver.evaluations(process) == count
    everywhere = Sharing(steps=tuple(range(count)))
    samples = shared(everywhere, solver, process=process)
    assert_same(samples, run(process, solver, plain))
    # The last evaluation, too, is shared where it is told so.
    fewer = Sharing(steps=tuple(range(count - 1)))
    assert np.abs(shared(fewer, solver, process=process) - samples).max() > 1e-4


@pytest.mark.parametrize("every", [1, 2, 3, 7, 10])
def test_every_kth_is_the_loop(every):
    expected = by_hand([n % every == 0 for n in range(7)])
    assert_same(shared(Sharing(every), Euler(7)), expected)


def test_steps_are_the_loop_in_any_order():
    expected = by_hand([1, 1, 0, 0, 1, 0, 0])
    assert_same(shared(Sharing(steps=(4, 0, 1)), Euler(7)), expected)


def test_a_step_of_heuns_method_has_two_evaluations():
    """Refreshing at every second one lets the second half of each step use the first one's."""

    def once_a_step(x, t, condition):
        first = encode(x, t, condition)
        h = -1 / 5
        slope = decode(x, t, condition, first)
        return (slope + decode(x + h * slope, t + h, condition, first)) / 2

    assert_same(shared(Sharing(every=2), Heun(5)), run(Flow(), Euler(5), once_a_step))


@pytest.mark.parametrize("refreshes", [[1] * 6, [1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.6), (0.0, 0.9)])
def test_both_halves_of_guidance_share(refreshes, interval):
    """Wherever guidance sets in, what it needs is there, of the same step as the other half's."""
    sharing = Sharing(steps=tuple(np.flatnonzero(refreshes).tolist()))
    guided = shared(sharing, Euler(6), ClassifierFree(3.0, interval))
    assert_same(guided, by_hand(refreshes, 3.0, interval))
    assert np.abs(guided - by_hand(refreshes)).max() > 1e-2


@pytest.mark.parametrize("guidance", [None, ClassifierFree(2.0), ClassifierFree(2.0, (0.2, 0.6))])
def test_the_first_half_is_not_run_in_between(guidance):
    halves, calls = zip(counted(encode), counted(decode))
    samples = shared(Sharing(steps=(0, 3, 4)), Euler(8), guidance, halves)
    samples.block_until_ready()
    jax.effects_barrier()
    assert [len(c) for c in calls] == [3, 8]


def test_what_is_recorded_is_the_first_half_of_every_evaluation():
    def collect(x, t, condition):
        seen.append(encode(x, t, condition))
        return plain(x, t, condition)

    seen, x = [], start()[0]
    for now, then in zip(*(np.linspace(1, 0, 5)[i : i + 4] for i in (0, 1))):
        x = x + (then - now) * collect(x, now, CONDITION)
    denoise = record(cache_first_half(encode, decode), 4)
    first, keys = start()
    state = denoise.start(first, CONDITION)
    samples, (count, kept) = Euler(4).solve(Flow(), denoise, first, state, CONDITION, keys)
    assert count == 4
    assert_same(samples, x)
    np.testing.assert_allclose(kept, np.stack(seen), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        (Sharing(every=0), "at least 1"),
        (Sharing(every=2, steps=(0,)), "not both"),
        (Sharing(steps=(1, 2)), "add step 0"),
        (Sharing(steps=(0, 4)), "steps from 0 to 3"),
        (Sharing(steps=(0, -1)), "steps from 0 to 3"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(sharing, message):
    with pytest.raises(InputError, match=message):
        sharing.refreshes(4)


def test_only_the_default_does_not_act():
    assert not Sharing().acts
    assert Sharing(every=2).acts and Sharing(steps=(0,)).acts and Sharing(every=0).acts


def test_steps_that_are_chosen_on_the_way_cannot_share():
    with pytest.raises(InputError, match="Dopri5.*Euler"):
        shared(Sharing(every=2), Dopri5())
    denoise = Sharing(every=2)(cache_first_half(encode, decode), 4)
    with pytest.raises(InputError, match="Dopri5.*Euler"):
        run(Flow(), Dopri5(), denoise)
