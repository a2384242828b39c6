"""Rows between devices: to those of their experts, and home again.

Rows travel by a ragged exchange, where the devices have one, or in boxes of equal size.
"""

import flax
import jax
import jax.numpy as jnp

# Of the TPU's registers. A row of whole lanes, on an axis of its own, lies together in memory and
# can be sent as it is.
_LANES = 128


@flax.struct.dataclass
class Trip:
    """Who sends what to whom, by sender, receiver and the receiver's expert: [P, P, E / P] each.

    Rows lie sorted by expert at their sender, and by expert and then sender where they are sent.

    Attributes:
      counts: rows.
      departures: the first one's place at its sender.
      axes: mesh axes along which rows travel, static.
    """

    counts: jax.Array
    departures: jax.Array
    axes: tuple[str, ...] = flax.struct.field(pytree_node=False)

    @property
    def me(self) -> jax.Array:
        """The number of the device that asks."""
        return jax.lax.axis_index(self.axes)

    @property
    def arrivals(self) -> jax.Array:
        """The first row's place at its receiver."""
        counts = self.counts.transpose(1, 2, 0)
        ends = jnp.cumsum(counts.reshape(len(counts), -1), axis=1).reshape(counts.shape)
        return (ends - counts).transpose(2, 0, 1)

    def of_receivers(self, start: jax.Array, room: int) -> "Trip":
        """A part of it: of each receiver's rows those from place `start` on, `room` at most."""
        return self._between(self.arrivals, start, room)

    def of_pairs(self, start: jax.Array, box: int) -> "Trip":
        """A part of it: of the rows between two devices those from `start` on, `box` at most."""
        return self._between(self.departures - self.departures[:, :, :1], start, box)

    def _between(self, places: jax.Array, start: jax.Array, size: int) -> "Trip":
        before = (start - places).clip(0, self.counts)
        after = (places + self.counts - start - size).clip(0, self.counts)
        counts = self.counts - before - after
        return self.replace(counts=counts, departures=self.departures + before)


def make_trip(counts: jax.Array, axes: tuple[str, ...]) -> Trip:
    """Says where rows go.

    Args:
      counts: rows of each sender for each expert, [P, E], experts in the order of their devices.
      axes: mesh axes along which rows travel.
    """
    departures = jnp.cumsum(counts, axis=1) - counts
    shape = len(counts), len(counts), -1
    return Trip(counts.reshape(shape), departures.reshape(shape), axes)


def there_ragged(trip: Trip, rows: jax.Array, room: int) -> jax.Array:
    """Sends rows [S, ...] to their experts' devices: [room, ...], zeros after the last."""
    space = jax.lax.empty((room, *rows.shape[1:]), rows.dtype)
    outgoing = trip.departures[trip.me], trip.counts[trip.me], trip.arrivals[trip.me]
    found = _ragged(trip, rows, space, (*outgoing, trip.counts[:, trip.me]))
    used = jnp.arange(room) < trip.counts[:, trip.me].sum()
    return jnp.where(used.reshape(-1, *[1] * (rows.ndim - 1)), found, 0)


def back_ragged(trip: Trip, rows: jax.Array, home: jax.Array) -> jax.Array:
    """Sends what `there_ragged` brought back to its places at home, [S, ...]."""
    outgoing = trip.arrivals[:, trip.me], trip.counts[:, trip.me], trip.departures[:, trip.me]
    return _ragged(trip, rows, home, (*outgoing, trip.counts[trip.me]))


def there_boxes(trip: Trip, rows: jax.Array, box: int) -> jax.Array:
    """Sends rows [S, ...], at most `box` to each device: [P box, ...], zeros after the last."""
    found = _swap(trip, _take(rows, _at_home(trip, len(rows), box)))
    space = jnp.zeros((len(trip.counts) * box, *rows.shape[1:]), rows.dtype)
    return space.at[_away(trip, box)].set(found, mode="drop")


def back_boxes(trip: Trip, rows: jax.Array, home: jax.Array) -> jax.Array:
    """Sends what `there_boxes` brought back to its places at home, [S, ...]."""
    box = len(rows) // len(trip.counts)
    found = _swap(trip, _take(rows, _away(trip, box)))
    return home.at[_at_home(trip, len(home), box)].set(found, mode="drop")


def as_lanes(rows: jax.Array) -> jax.Array:
    """Gives rows [R, D] the shape that travels best, [R, D / 128, 128] where that divides."""
    width = rows.shape[1]
    return rows if width % _LANES else rows.reshape(len(rows), -1, _LANES)


def _ragged(trip: Trip, rows: jax.Array, space: jax.Array, parts: tuple) -> jax.Array:
    flat = (part.reshape(-1) for part in parts)
    return jax.lax.ragged_all_to_all(rows, space, *flat, axis_name=trip.axes)


def _at_home(trip: Trip, sent: int, box: int) -> jax.Array:
    """Places here of the rows in the box for each device; `sent`, which is none, where it is empty.

    Rows for one device follow each other, also those of a part of a trip.
    """
    counts, departures = trip.counts[trip.me], trip.departures[trip.me]
    first = jnp.where(counts > 0, departures, sent).min(1)
    number = jnp.arange(box)
    return jnp.where(number < counts.sum(1)[:, None], first[:, None] + number, sent)


def _away(trip: Trip, box: int) -> jax.Array:
    """Places here of the rows in the box from each device; P box, which is none, where empty."""
    number = jnp.arange(box)

    def of_sender(counts: jax.Array, arrivals: jax.Array) -> jax.Array:
        ends = jnp.cumsum(counts)
        expert = jnp.searchsorted(ends, number, side="right").clip(max=len(ends) - 1)
        place = arrivals[expert] + number - (ends - counts)[expert]
        return jnp.where(number < ends[-1], place, len(trip.counts) * box)

    return jax.vmap(of_sender)(trip.counts[:, trip.me], trip.arrivals[:, trip.me])


def _swap(trip: Trip, boxes: jax.Array) -> jax.Array:
    return jax.lax.all_to_all(boxes, trip.axes, 0, 0, tiled=True)


def _take(rows: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take(rows, index, axis=0, mode="fill", fill_value=0)
