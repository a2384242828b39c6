"""Attention kernels on a mesh of devices."""

from collections.abc import Callable

import jax

from dit_jax.parallel.sharding import current_layout


def over_devices(kernel: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Runs a kernel on each device's own samples and heads, which need nothing of each other.

    XLA divides its own operations over a mesh, but not a kernel.

    Args:
      kernel: maps arrays [B, N, H, Dh] to another.
      *arrays: the kernel's arguments.
    """
    layout = current_layout()
    if layout is None:
        return kernel(*arrays)
    spec = layout.sharding(("batch", "tokens", "heads", "head"), arrays[0].shape).spec
    divided = jax.shard_map(
        kernel, mesh=layout.mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    return divided(*arrays)
