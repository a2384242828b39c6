"""Experts on several devices (expert parallelism, GShard, arXiv 2006.16668)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from dit_jax.errors import InputError
from dit_jax.moe.dispatch.dispatch import Compute
from dit_jax.moe.dispatch.rounds import Rounds, in_rounds
from dit_jax.moe.dispatch.trip import as_lanes
from dit_jax.moe.experts import Params
from dit_jax.moe.routing import Routing
from dit_jax.parallel.sharding import Layout, current_layout, parameter_axes

# Chips of a v5e slice from which on it has no ragged exchange ("limited ICI routing").
_V5E_CHIPS = 32


def across_experts(
    local: Callable, x: jax.Array, routing: Routing, params: Any, compute: Compute
) -> tuple[jax.Array, jax.Array]:
    """Runs a dispatch on each device's own tokens, and rows travel where the mesh divides experts.

    Experts are divided over the mesh axes of "experts" and their hidden layers over those of "mlp";
    parameters that are divided further are gathered for the purpose, in the dtype of the tokens.
    Tokens of a sample may lie on several devices, unless slots name them.

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
    axes = {
        name: {leaf: parameter_axes(f"experts/{name}/{leaf}") for leaf in layer}
        for name, layer in params.items()
    }
    specs = _map_leaves(lambda p, names: layout.sharding(names, p.shape).spec, params, axes)
    # Experts without a hidden layer are whole on each device: there is nothing to add up.
    hidden = any("mlp" in names for layer in axes.values() for names in layer.values())
    apart = layout.axes("tokens") if routing.tokens is None else ()
    exchange = Exchange(
        layout.axes("experts"),
        layout.ways("experts"),
        layout.axes("batch") + apart,
        layout.axes("mlp") if hidden else (),
        _has_ragged(layout),
    )
    tokens = PartitionSpec(layout.axes("batch"), apart)

    def body(x, routing, params):
        params = _map_leaves(functools.partial(_gather, layout, x.dtype), params, axes)
        # Devices add up parts of a sum, so of a bias that follows the sum each has its share.
        share = 1 / layout.ways("mlp") if hidden else 1.0
        params = {name: _shared(layer, axes[name], share) for name, layer in params.items()}
        return local(x, routing, params, functools.partial(_summed, compute, exchange), exchange)

    return jax.shard_map(
        body,
        mesh=layout.mesh,
        in_specs=(tokens, jax.tree.map(lambda _: tokens, routing), specs),
        out_specs=(tokens, PartitionSpec()),
        check_vma=False,
    )(x, routing, params)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Between devices, or on one alone by default.

    Attributes:
      axes: mesh axes that divide the experts.
      devices: number of devices along them.
      token_axes: mesh axes that divide the tokens.
      hidden_axes: mesh axes that divide the experts' hidden layers.
      ragged: whether TPUs have an exchange of rows in any number, if these are TPUs.
    """

    axes: tuple[str, ...] = ()
    devices: int = 1
    token_axes: tuple[str, ...] = ()
    hidden_axes: tuple[str, ...] = ()
    ragged: bool = True

    def mean(self, x: jax.Array) -> jax.Array:
        """Averages over all devices that share the tokens."""
        return jax.lax.pmean(x, self.token_axes) if self.token_axes else x

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

    def apply(
        self, function: Callable, params: Params, rows: jax.Array, sizes: jax.Array
    ) -> jax.Array:
        """Applies a function of sorted rows and group sizes where the rows' experts are.

        Any device may get all rows of all others: they come in rounds then, and none is dropped.

        Args:
          function: (params, rows [R, D], sizes [E / P], whether they add up to R) to [R, D].
          params: of the experts that are here.
          rows: [S, D], sorted by expert.
          sizes: rows of each expert, [E].

        Returns:
          [S, D], of the rows in their order.
        """
        if self.devices == 1:
            return function(params, rows, sizes, False)

        def of_lanes(params: Params, lanes: jax.Array, sizes: jax.Array) -> jax.Array:
            flat = lanes.reshape(len(lanes), -1)
            return function(params, flat, sizes, True).reshape(lanes.shape)

        def run(ragged: bool) -> Callable:
            own = Rounds(self.axes, self.devices, self.token_axes, len(rows), ragged)
            return functools.partial(in_rounds, of_lanes, own)

        # The platform that is lowered for decides, not the one that runs.
        kernels = {"tpu": run(True)} if self.ragged else {}
        y = jax.lax.platform_dependent(params, as_lanes(rows), sizes, **kernels, default=run(False))
        return y.reshape(rows.shape)


def _has_ragged(layout: Layout) -> bool:
    mesh = layout.mesh
    return "v5 lite" not in mesh.devices.flat[0].device_kind or mesh.size < _V5E_CHIPS


def _summed(compute: Compute, exchange: Exchange, params, rows, dot) -> jax.Array:
    y = compute(params, rows, dot)
    return jax.lax.psum(y, exchange.hidden_axes) if exchange.hidden_axes else y


def _map_leaves(function: Callable, params: Params, axes: dict[str, dict[str, tuple]]) -> Any:
    return {
        name: {leaf: function(value, axes[name][leaf]) for leaf, value in layer.items()}
        for name, layer in params.items()
    }


def _gather(layout: Layout, dtype: Any, value: jax.Array, axes: tuple[str | None, ...]):
    """Puts a parameter together, but for its experts and its hidden units."""
    value = value.astype(dtype)  # First, as half the bytes travel then.
    for number, name in enumerate(axes):
        if name not in ("experts", "mlp") and layout.axes(name):
            value = jax.lax.all_gather(value, layout.axes(name), axis=number, tiled=True)
    return value


def _shared(layer: Params, axes: dict[str, tuple], share: float) -> Params:
    if "bias" not in layer or "mlp" in axes["bias"]:
        return layer
    return layer | {"bias": layer["bias"] * share}
