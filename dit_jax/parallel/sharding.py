"""Logical axes: one table for parameters, one helper for activations, one rules object for both.

Models name what an axis *is* ("batch", "embed"); `RULES` says which mesh axis it lies on. Devices
that share a sample's tokens share heads instead while tokens mix, by two all-to-alls a layer
(DeepSpeed-Ulysses, arXiv 2309.14509); replicas divide moments and averages (ZeRO's stage 1, arXiv
1910.02054).
"""

import contextlib
import contextvars
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from dit_jax.errors import InputError

Rules = dict[str, tuple[str, ...]]

# Logical axis -> mesh axes. Axes without a row are not sharded.
RULES: Rules = {
    # Activations. Any mixer runs as it is, on whole sequences of some heads or channels.
    "batch": ("data", "fsdp", "expert"),
    "tokens": ("sequence",),
    "mixed_heads": ("tensor", "sequence"),
    "mixed_channels": ("tensor", "sequence"),
    # Parameters, gathered where they are used (FSDP).
    "embed": ("fsdp", "sequence"),
    "experts": ("expert",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
}

# Of moments and averages, which replicas need not all keep.
STATE_RULES: Rules = RULES | {"embed": ("fsdp", "sequence", "data")}

# Parameter path -> logical axes; the first match wins. Leaves of a stack carry "layers" in front.
PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(patch|encoder|decoder)_embed/kernel", ("patch", "embed")),
    (r"time_embed/features/frequencies", ("features",)),
    (r"token_embed/kernel", ("patch", "embed")),
    (r"pixels/kernel", ("embed", "patch")),
    (r"cls", ("one", "features")),
    (r"label_embed/table/embedding", ("label", "embed")),
    (r"time_embed/fc\d/kernel", ("features", "embed")),
    (r"(attention|shifted)/qkv/kernel", ("embed", "qkv", "heads", "head")),
    (r"(attention|shifted)/qkv/bias", ("qkv", "heads", "head")),
    (r"cross/q/kernel", ("embed", "heads", "head")),
    (r"cross/q/bias", ("heads", "head")),
    (r"cross/kv/kernel", ("embed", "kv", "heads", "head")),
    (r"cross/kv/bias", ("kv", "heads", "head")),
    (r"(attention|shifted|cross)/out/kernel", ("heads", "head", "embed")),
    (r"attention/mixer/conv_kernel", ("rows", "columns", "one", "head")),
    (r"attention/mixer/pool_weight", ("rows", "columns")),
    (r"attention/mixer/lambda", ("heads",)),
    (r"attention/mixer/\w+_projectors", ("projectors", "heads", "head", "features")),
    (r"attention/mixer/\w+_router", ("heads", "head", "logits")),
    (r"(ffn|shared)/fc1/kernel", ("embed", "mlp")),
    (r"(ffn|shared)/gate_value/kernel", ("embed", "gate", "mlp")),
    (r"(ffn|shared)/(gate|value)_conv/kernel", ("rows", "columns", "one", "mlp")),
    (r"(ffn|shared)/(fc2|out)/kernel", ("mlp", "embed")),
    (r"experts/fc1/kernel", ("experts", "embed", "mlp")),
    (r"experts/gate_value/kernel", ("experts", "embed", "gate", "mlp")),
    (r"experts/(fc2|out)/kernel", ("experts", "mlp", "embed")),
    (r"experts/fc1/bias", ("experts", "mlp")),
    (r"experts/fc2/bias", ("experts", "embed")),
    (r"experts/linear/kernel", ("experts", "embed", "features")),
    (r"experts/linear/bias", ("experts", "features")),
    (r"condition/kernel", ("embed", "features")),
    (r"router/kernel", ("embed", "logits")),
    (r"router/prototypes", ("logits", "embed")),
    (r"router/(gate|predictor_fc\d)/kernel", ("embed", "features")),
    (r"adaln/linear/kernel", ("embed", "modulation")),
    (r"final/linear/kernel", ("embed", "patch")),
    (r"gate_value/bias", ("gate", "features")),
    (r"(bias|scale|\w+_statistic)", ("features",)),
)


def parameter_axes(path: str) -> tuple[str | None, ...]:
    """Returns the logical axes of the parameter at `path`, such as 'blocks/layers/ffn/fc1/bias'.

    Raises:
      InputError: no row of `PARAMETER_AXES` matches.
    """
    for pattern, axes in PARAMETER_AXES:
        if re.search(rf"(^|/){pattern}$", path):
            return ("layers", *axes) if "/layers/" in path else axes
    raise InputError(f"parameter '{path}' has no row in PARAMETER_AXES: add one")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays lie on a mesh, also on one whose devices are not there."""

    mesh: Mesh | AbstractMesh

    @property
    def replicated(self) -> NamedSharding:
        """A full copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Axis 0 divided over all devices that share a batch."""
        return NamedSharding(self.mesh, PartitionSpec(RULES["batch"]))

    def rows(self, batch_size: int) -> np.ndarray:
        """Rows of a global batch that this process's devices hold, ascending.

        Processes whose devices share a part of the batch hold the same rows.
        """
        held = np.zeros(batch_size, bool)
        for (rows,) in self.batch.addressable_devices_indices_map((batch_size,)).values():
            held[rows] = True
        return np.flatnonzero(held)

    def sharding(
        self, axes: tuple[str | None, ...], shape: tuple[int, ...], rules: Rules = RULES
    ) -> NamedSharding:
        """Returns the sharding of an array whose axes have these logical names.

        Raises:
          InputError: two axes land on one mesh axis, or a size does not divide.
        """
        spec = [rules.get(axis) if axis else None for axis in axes]
        used: dict[str, str] = {}
        for name, size, mesh_axes in zip(axes, shape, spec, strict=True):
            for mesh_axis in mesh_axes or ():
                if mesh_axis in used:
                    raise InputError(
                        f"axes '{used[mesh_axis]}' and '{name}' of an array {shape} both land on "
                        f"mesh axis '{mesh_axis}': change one of their rules"
                    )
                used[mesh_axis] = name
            ways = math.prod(self.mesh.shape[axis] for axis in mesh_axes or ())
            if size % ways:
                longer = [axis for axis in mesh_axes if self.mesh.shape[axis] > 1]
                raise InputError(
                    f"axis '{name}' of size {size} does not divide over {ways} devices "
                    f"({' x '.join(longer)}): change the size or the mesh"
                )
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def axes(self, name: str) -> tuple[str, ...]:
        """Returns the mesh axes, longer than one device, that divide a logical axis."""
        return tuple(axis for axis in RULES.get(name, ()) if self.mesh.shape[axis] > 1)

    def ways(self, name: str) -> int:
        """Returns the number of parts that a logical axis is divided into."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes(name))

    def parameters(self, abstract: Any) -> Any:
        """Returns the shardings of a parameter tree, given its shapes."""
        return _map_axes(lambda axes, shape: self.sharding(axes, shape), abstract)

    def moments(self, abstract: Any) -> Any:
        """Returns shardings for what is kept beside each parameter, and needed in updates alone.

        Replicas divide it among them, where sizes allow; elsewhere it lies as the parameter does.
        """

        def leaf(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
            try:
                return self.sharding(axes, shape, STATE_RULES)
            except InputError:
                return self.sharding(axes, shape)

        return _map_axes(leaf, abstract)


def _map_axes(function: Callable, abstract: Any) -> Any:
    """Maps function(logical axes, shape) over a parameter tree."""

    def leaf(path: Any, value: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return function(parameter_axes(name), value.shape)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def place(tree: Any, shardings: Any) -> Any:
    """Puts arrays that every process has on the devices of all of them.

    Args:
      tree: arrays that are equal on all processes, or that lie on the devices of all already.
      shardings: where each is to lie, or all are.
    """

    def leaf(array: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable or not getattr(array, "is_fully_addressable", True):
            return jax.device_put(array, sharding)
        # Here device_put would gather the array from every process, to compare them.
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda array: leaf(array, shardings), tree)
    return jax.tree.map(leaf, tree, shardings)


_layout: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def use_layout(layout: Layout) -> Iterator[None]:
    """Makes `constrain` act, while a function is traced."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def current_layout() -> Layout | None:
    """Returns the layout of the `use_layout` that the caller is traced in."""
    return _layout.get()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays an activation out by its axes' logical names; the identity outside `use_layout`."""
    layout = current_layout()
    if layout is None:
        return x
    return jax.lax.with_sharding_constraint(x, layout.sharding(axes, x.shape))


def may_have_kernels() -> bool:
    """Whether a program that is traced here and now may have a Pallas kernel in it.

    The compiler divides its own operations over devices, but no such kernel; and without a layout
    nothing says which device has what, and the program may be for many.
    """
    return current_layout() is not None or jax.device_count() == 1


def on_each_device(function: Callable[..., jax.Array], *axes: str | None) -> Callable:
    """Runs a function on each device's own part of its arrays; as it is outside `use_layout`.

    For what the compiler cannot divide, such as Pallas kernels.

    Args:
      function: takes arrays of one shape and returns such an array; parts must not need each other.
      *axes: logical names of their axes.
    """

    def run(*arrays: jax.Array) -> jax.Array:
        layout = current_layout()
        if layout is None:
            return function(*arrays)
        spec = layout.sharding(axes, arrays[0].shape).spec
        return jax.shard_map(
            function, mesh=layout.mesh, in_specs=spec, out_specs=spec, check_vma=False
        )(*arrays)

    return run
