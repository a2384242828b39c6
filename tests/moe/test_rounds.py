"""Rounds of rows between devices: by boxes, and by the TPU's ragged exchange, written out here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dit_jax.moe.dispatch.rounds import Rounds, in_rounds
from dit_jax.parallel.mesh import Parallel

DEVICES, EXPERTS, SENT, WIDTH = 4, 8, 24, 3
AXES = ("expert",)


def ragged_all_to_all(rows, space, first, count, place, received, *, axis_name):
    """The exchange by its definition: segment after segment, from everybody to me."""
    del received
    me = jax.lax.axis_index(axis_name)
    everything = (jax.lax.all_gather(x, axis_name) for x in (rows, first, count, place))
    rows, *segments = everything
    first, count, place = (x.reshape(DEVICES, DEVICES, -1)[:, me] for x in segments)
    number = jnp.arange(rows.shape[1])
    for sender in range(DEVICES):
        for a, n, to in zip(first[sender], count[sender], place[sender]):
            target = jnp.where(number < n, to + number, len(space))
            source = (a + number).clip(max=rows.shape[1] - 1)
            space = space.at[target].set(rows[sender][source], mode="drop")
    return space


@pytest.fixture(autouse=True)
def exchange(monkeypatch):
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)
    # What is not written must not matter.
    monkeypatch.setattr(jax.lax, "empty", lambda shape, dtype: jnp.full(shape, jnp.nan, dtype))


def scaled(params, rows, sizes):
    """Every expert has a matrix of its own."""
    expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(len(rows)), side="right")
    return jnp.einsum("rd,rdf->rf", rows, params[expert])


def sizes_of(load):
    """Rows of each device for each expert, [DEVICES, EXPERTS]."""
    rng = np.random.default_rng(0)
    experts = {
        "even": np.tile(np.arange(SENT) % EXPERTS, (DEVICES, 1)),
        "uneven": np.minimum(rng.integers(0, EXPERTS, (DEVICES, SENT)), 5),
        "all on the last": np.full((DEVICES, SENT), EXPERTS - 1),
        "half unused": rng.integers(0, 2 * EXPERTS, (DEVICES, SENT)),
        "none": np.full((DEVICES, SENT), EXPERTS),
    }[load]
    return np.stack([np.bincount(e, minlength=2 * EXPERTS)[:EXPERTS] for e in experts])


@functools.cache
def compiled(ragged):
    """Results and gradients of all devices' rows, over devices."""
    mesh = Parallel(data=1, expert=DEVICES).mesh(jax.devices()[:DEVICES])
    rounds = Rounds(AXES, DEVICES, AXES, SENT, ragged)
    spec = PartitionSpec(AXES)

    def own(params, rows, sizes, dy):
        run = functools.partial(in_rounds, scaled, rounds)
        y, pull = jax.vjp(lambda p, r: run(p, r, sizes[0]), params, rows)
        return y, *pull(dy)

    return jax.jit(jax.shard_map(own, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("load", ["even", "uneven", "all on the last", "half unused", "none"])
def test_rounds_equal_a_loop_over_rows(load, ragged):
    rng = np.random.default_rng(1)
    params = rng.normal(size=(EXPERTS, WIDTH, WIDTH)).astype(np.float32)
    rows, dy = rng.normal(size=(2, DEVICES * SENT, WIDTH)).astype(np.float32)
    sizes = sizes_of(load)
    y, dy_params, dy_rows = compiled(ragged)(params, rows, sizes, dy)
    expected = [np.zeros_like(x) for x in (rows, params, rows)]
    for device, counts in enumerate(sizes):
        for place, expert in enumerate(np.repeat(np.arange(EXPERTS), counts)):
            row = device * SENT + place
            expected[0][row] = rows[row] @ params[expert]
            expected[1][expert] += np.outer(rows[row], dy[row])
            expected[2][row] = params[expert] @ dy[row]
    for found, wanted in zip((y, dy_params, dy_rows), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_an_even_load_is_one_round_and_the_worst_many():
    rounds = Rounds(AXES, DEVICES, AXES, 1024, True)
    assert rounds.room == pytest.approx(1.25 * 1024, rel=0.05)
    assert rounds.room % 8 == 0
