"""Experts on several devices, in rounds: no row is dropped, and none needs room that is not there.

A round takes what an even load would be, and a little more; the most loaded device, or pair of
devices where rows travel in boxes, says how many there are.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dit_jax.moe.dispatch.trip import (
    Trip,
    back_boxes,
    back_ragged,
    make_trip,
    there_boxes,
    there_ragged,
)

# function(params, rows [room, ...], sizes [E / P]) to rows like them, each by the expert that it is
# sorted to; the sizes add up to `room`.
Function = Callable[[Any, jax.Array, jax.Array], jax.Array]


# A round has room for so much of an even load.
_SLACK = 1.25


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What all devices have in common.

    Attributes:
      axes: mesh axes along which rows travel.
      devices: number of devices along them.
      together: mesh axes of all devices that take as many rounds.
      sent: rows of a device.
      ragged: whether devices have an exchange of rows in any number.
    """

    axes: tuple[str, ...]
    devices: int
    together: tuple[str, ...]
    sent: int
    ragged: bool

    @property
    def box(self) -> int:
        """Rows that a device sends another one in a round, on average; a multiple of 8."""
        return max(1, round(self.sent * _SLACK / self.devices / 8)) * 8

    @property
    def room(self) -> int:
        """Rows of a device in a round."""
        return self.box * self.devices

    def count(self, trip: Trip) -> jax.Array:
        """Number of rounds that all rows take."""
        pairs = trip.counts.sum(2)
        most, size = (pairs.sum(0), self.room) if self.ragged else (pairs, self.box)
        return jax.lax.pmax(-(-most.max() // size), self.together)

    def part(self, trip: Trip, number: jax.Array) -> Trip:
        """What travels in a round."""
        if self.ragged:
            return trip.of_receivers(number * self.room, self.room)
        return trip.of_pairs(number * self.box, self.box)

    def there(self, trip: Trip, rows: jax.Array) -> jax.Array:
        """Sends the rows of a round, [sent, ...] to [room, ...]."""
        if self.ragged:
            return there_ragged(trip, rows, self.room)
        return there_boxes(trip, rows, self.box)

    def back(self, trip: Trip, rows: jax.Array, home: jax.Array) -> jax.Array:
        """Sends them back to their places at home, [sent, ...]."""
        return (back_ragged if self.ragged else back_boxes)(trip, rows, home)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def in_rounds(
    function: Function, rounds: Rounds, params: Any, rows: jax.Array, sizes: jax.Array
) -> jax.Array:
    """Applies a function of sorted rows where the rows' experts are.

    Args:
      function: what is computed.
      rounds: how.
      params: what the function has besides.
      rows: [S, ...], sorted by expert.
      sizes: rows of each expert, [E]; they add up to S at most.

    Returns:
      Rows like them; those of no expert are zero.
    """

    def one(trip: Trip, home: jax.Array) -> jax.Array:
        y = function(params, rounds.there(trip, rows), _sizes(trip, rounds.room))
        return rounds.back(trip, y, home)

    return _for_each(one, rounds, sizes, jnp.zeros_like(rows))


def _forward(function, rounds, params, rows, sizes):
    return in_rounds(function, rounds, params, rows, sizes), (params, rows, sizes)


def _backward(function, rounds, saved, dy):
    params, rows, sizes = saved

    def one(trip: Trip, carried: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        dparams, drows = carried
        own, dy_own = (rounds.there(trip, x) for x in (rows, dy))
        own_sizes = _sizes(trip, rounds.room)
        pull = jax.vjp(lambda p, r: function(p, r, own_sizes), params, own)[1]
        more, drows_own = pull(dy_own)
        return jax.tree.map(jnp.add, dparams, more), rounds.back(trip, drows_own, drows)

    start = jax.tree.map(jnp.zeros_like, (params, rows))
    return *_for_each(one, rounds, sizes, start), None


in_rounds.defvjp(_forward, _backward)


def _for_each(one: Callable, rounds: Rounds, sizes: jax.Array, start: Any) -> Any:
    """Runs one(trip, carried) for every round."""
    trip = make_trip(jax.lax.all_gather(sizes, rounds.axes), rounds.axes)

    def body(number: jax.Array, carried: Any) -> Any:
        return one(rounds.part(trip, number), carried)

    return jax.lax.fori_loop(0, rounds.count(trip), body, start)


def _sizes(trip: Trip, room: int) -> jax.Array:
    """Rows of each expert. The last one has the zeros at the end too, so that there is no rest."""
    sizes = trip.counts[:, trip.me].sum(0)
    return sizes.at[-1].add(room - sizes.sum())
