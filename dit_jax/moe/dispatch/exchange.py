"""Rows between the devices that hold experts (expert parallelism, GShard, arXiv 2006.16668)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dit_jax.errors import InputError
from dit_jax.moe.dispatch.dispatch import Compute
from dit_jax.moe.dispatch.rows import permute, sort_by_expert
from dit_jax.moe.experts import Params
from dit_jax.moe.routing import Routing
from dit_jax.parallel.sharding import Layout, current_layout, parameter_axes


def across_experts(
    local: Callable, x: jax.Array, routing: Routing, params: Any, compute: Compute
) -> tuple[jax.Array, jax.Array]:
    """Runs a dispatch on each device's own tokens, and rows travel where the mesh divides experts.

    Experts are divided over the mesh axes of "experts" and their hidden layers over those of "mlp";
    parameters that are divided further are gathered for the purpose.

    Args:
      local: (x, routing, params, compute, exchange) to results [G, M, D] and the share dropped.
      x: tokens [G, M, D].
      routing: which token goes where.
      params: the experts' parameters.
      compute: what an expert computes.
    """
    layout = current_layout()
    if layout is None:
        return local(x, routing, params, compute, Exchange())
    if len(x) % layout.ways("batch"):
        raise InputError(
            f"{len(x)} groups of tokens do not divide over the {layout.ways('batch')} devices that "
            "share a batch: change the batch size, or a router's pools"
        )
    axes = _logical_axes(layout, params)
    # Experts without a hidden layer are whole on each device: there is nothing to add up.
    hidden = any("mlp" in names for layer in axes.values() for names in layer.values())
    exchange = Exchange(
        layout.axes("experts"),
        layout.ways("experts"),
        layout.axes("batch"),
        layout.axes("mlp") if hidden else (),
    )
    batch = PartitionSpec(layout.axes("batch"))

    def body(x, routing, params):
        # Devices add up parts of a sum, so of a bias that follows the sum each has its share.
        share = 1 / layout.ways("mlp") if hidden else 1.0
        params = {name: _shared(layer, axes[name], share) for name, layer in params.items()}
        return local(x, routing, params, functools.partial(_summed, compute, exchange), exchange)

    return jax.shard_map(
        body,
        mesh=layout.mesh,
        in_specs=(batch, jax.tree.map(lambda _: batch, routing), _specs(layout, axes)),
        out_specs=(batch, PartitionSpec()),
        check_vma=False,
    )(x, routing, params)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Between devices, or on one alone by default.

    Attributes:
      axes: mesh axes that divide the experts.
      devices: number of devices along them.
      batch_axes: mesh axes that divide the tokens.
      hidden_axes: mesh axes that divide the experts' hidden layers.
    """

    axes: tuple[str, ...] = ()
    devices: int = 1
    batch_axes: tuple[str, ...] = ()
    hidden_axes: tuple[str, ...] = ()

    def mean(self, x: jax.Array) -> jax.Array:
        """Averages over all devices that share the batch."""
        return jax.lax.pmean(x, self.batch_axes) if self.batch_axes else x

    def to_experts(self, rows: jax.Array) -> jax.Array:
        """Sends places [E, C, D] to the devices of their experts: [E / P, P C, D]."""
        if self.devices == 1:
            return rows
        return jax.lax.all_to_all(rows, self.axes, split_axis=0, concat_axis=1, tiled=True)

    def from_experts(self, rows: jax.Array) -> jax.Array:
        """Inverse of `to_experts`."""
        if self.devices == 1:
            return rows
        return jax.lax.all_to_all(rows, self.axes, split_axis=1, concat_axis=0, tiled=True)

    def apply(self, function: Callable, rows: jax.Array, sizes: jax.Array) -> jax.Array:
        """Applies a function of sorted rows and group sizes where the rows' experts are.

        Any device may get all rows of all others: there is room for them, so none is dropped.

        Args:
          function: (rows [R, D], sizes [E / P]) to [R, D].
          rows: [S, D], sorted by expert.
          sizes: rows of each expert, [E].

        Returns:
          [S, D], of the rows in their order.
        """
        if self.devices == 1:
            return function(rows, sizes)
        count = len(rows)
        by_device = sizes.reshape(self.devices, -1)
        counts = jax.lax.all_to_all(by_device, self.axes, 0, 0, tiled=True)
        trip = _Trip(self.axes, count, by_device.sum(1), counts.sum(1))
        received = trip.there(rows)
        # From each device come rows in the order of experts; the rest of its room is nobody's.
        numbers = jnp.arange(count)[None, :, None]
        expert = (numbers >= jnp.cumsum(counts, axis=1)[:, None]).sum(-1)
        order, place = sort_by_expert(expert.reshape(-1))
        y = function(permute(received, order, place), counts.sum(0))
        return trip.back(permute(y, place, order))


@dataclasses.dataclass(frozen=True)
class _Trip:
    """Rows that go to other devices, into `count` places a sender, and come back.

    Only rows that are sent travel where the backend has such an exchange; elsewhere all places do.
    """

    axes: tuple[str, ...]
    count: int
    sent: jax.Array
    received: jax.Array

    @property
    def start(self) -> jax.Array:
        return jnp.cumsum(self.sent) - self.sent

    def there(self, rows: jax.Array) -> jax.Array:
        return _by_platform(self._there, self._there_ragged, rows)

    def back(self, rows: jax.Array) -> jax.Array:
        return _by_platform(self._back, self._back_ragged, rows)

    def _there(self, rows):
        places = jnp.arange(self.count)
        index = jnp.where(places < self.sent[:, None], self.start[:, None] + places, self.count)
        boxes = jnp.take(rows, index, axis=0, mode="fill", fill_value=0)
        boxes = jax.lax.all_to_all(boxes, self.axes, 0, 0, tiled=True)
        return boxes.reshape(-1, rows.shape[-1])

    def _back(self, rows):
        boxes = rows.reshape(len(self.sent), self.count, -1)
        boxes = jax.lax.all_to_all(boxes, self.axes, 0, 0, tiled=True)
        row = jnp.arange(self.count)
        device = jnp.searchsorted(jnp.cumsum(self.sent), row, side="right")
        index = device * self.count + row - jnp.append(self.start, 0)[device]
        boxes = boxes.reshape(-1, rows.shape[-1])
        return jnp.take(boxes, index, axis=0, mode="fill", fill_value=0)

    def _there_ragged(self, rows):
        room = jnp.zeros((len(self.sent) * self.count, rows.shape[-1]), rows.dtype)
        mine = jnp.full_like(self.start, jax.lax.axis_index(self.axes) * self.count)
        return self._ragged(rows, room, self.start, self.sent, mine, self.received)

    def _back_ragged(self, rows):
        room = jnp.zeros((self.count, rows.shape[-1]), rows.dtype)
        theirs = jax.lax.all_to_all(self.start, self.axes, 0, 0, tiled=True)
        boxes = jnp.arange(len(self.sent), dtype=self.start.dtype) * self.count
        return self._ragged(rows, room, boxes, self.received, theirs, self.sent)

    def _ragged(self, rows, room, *offsets):
        return jax.lax.ragged_all_to_all(rows, room, *offsets, axis_name=self.axes)


def _by_platform(fixed: Callable, ragged: Callable, rows: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(rows, tpu=ragged, default=fixed)


def _summed(compute: Compute, exchange: Exchange, params, rows, dot) -> jax.Array:
    y = compute(params, rows, dot)
    return jax.lax.psum(y, exchange.hidden_axes) if exchange.hidden_axes else y


def _logical_axes(layout: Layout, params: Any) -> dict[str, dict[str, tuple]]:
    """Logical axes of experts' parameters; refuses what does not divide."""
    axes = {
        name: {leaf: parameter_axes(f"experts/{name}/{leaf}") for leaf in layer}
        for name, layer in params.items()
    }
    jax.tree.map(lambda value, names: layout.sharding(names, value.shape), params, axes)
    return axes


def _specs(layout: Layout, axes: dict[str, dict[str, tuple]]) -> Any:
    """Inside, parameters are divided by expert and by hidden unit, no further."""
    inside = {"experts": layout.axes("experts"), "mlp": layout.axes("mlp")}
    return {
        name: {
            leaf: PartitionSpec(*(inside.get(axis) or None for axis in names))
            for leaf, names in layer.items()
        }
        for name, layer in axes.items()
    }


def _shared(layer: Params, axes: dict[str, tuple], share: float) -> Params:
    if "bias" not in layer or "mlp" in axes["bias"]:
        return layer
    return layer | {"bias": layer["bias"] * share}
