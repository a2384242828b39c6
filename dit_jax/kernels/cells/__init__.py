"""Tokens of a grid in the order of its cells, with means of cells; and back.

On a TPU by Pallas kernels that read and write each token once, where cells are whole; elsewhere by
transpositions of XLA.
"""

import functools
import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

from dit_jax.kernels.cells import tpu, xla
from dit_jax.kernels.cells.geometry import Cells
from dit_jax.parallel.sharding import current_layout, may_have_kernels

__all__ = ["Cells", "join", "split"]


def split(x: jax.Array, cells: Cells, means: bool = False) -> tuple[jax.Array, ...]:
    """Orders tokens by cells, and by the smaller cells in those, each row-major.

    Args:
      x: tokens [B, N, H, D] of the grid, row-major.
      cells: how the grid is cut.
      means: also take the mean of each cell's tokens, of each side.

    Returns:
      Tokens [B, H, N', D], where cells at the grid's ends are filled up with zeros, and the means
      [B, H, cells, D] of what each cell holds, of each side, in the dtype of `x`; zero where it
      holds nothing.
    """
    run = functools.partial(_split, cells=cells, means=means)
    outputs = 1 + len(cells.sides) * means
    return _per_device(run, x, (None, "mixed_heads"), ("mixed_heads",), outputs)


def join(x: jax.Array, cells: Cells) -> jax.Array:
    """Back from tokens [B, H, N', D] in the cells' order to those of the grid, [B, N, H, D]."""
    run = functools.partial(_join, cells=cells)
    return _per_device(run, x, ("mixed_heads",), (None, "mixed_heads"), None)


def _per_device(run: Any, x: jax.Array, inner: tuple, outer: tuple, outputs: int | None) -> Any:
    """Runs on each device's own samples and heads, whose axes are given without the first."""
    layout = current_layout()
    if layout is None:
        return run(x)
    # A single head, such as all of a token's features, is every device's.
    axes = ("batch", *(name if x.shape[i] > 1 else None for i, name in enumerate(inner, start=1)))
    found = dict(zip(axes, layout.sharding(axes, x.shape[: len(axes)]).spec, strict=True))
    out = PartitionSpec(*(found.get(name) for name in ("batch", *outer)))
    return jax.shard_map(
        run,
        mesh=layout.mesh,
        in_specs=PartitionSpec(*(found.get(name) for name in axes)),
        out_specs=out if outputs is None else (out,) * outputs,
        check_vma=False,
    )(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _split(x, cells, means):
    by_kernel = functools.partial(tpu.split, cells=cells, means=means)
    by_xla = functools.partial(xla.split, cells=cells, means=means)
    return _by_platform(x.shape, cells, by_kernel, by_xla, x)


def _split_forward(x, cells, means):
    return _split(x, cells, means), None


def _split_backward(cells, means, _, cotangents):
    batch, heads, _, width = cotangents[0].shape
    x = jax.ShapeDtypeStruct((batch, math.prod(cells.grid), heads, width), cotangents[0].dtype)
    by_xla = jax.linear_transpose(functools.partial(xla.split, cells=cells, means=means), x)
    return (
        _by_platform(
            x.shape,
            cells,
            lambda *parts: tpu.merge(parts, cells),
            lambda *parts: by_xla(parts)[0],
            *cotangents,
        ),
    )


_split.defvjp(_split_forward, _split_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _join(x, cells):
    shape = len(x), math.prod(cells.grid), x.shape[1], x.shape[3]
    by_xla = functools.partial(xla.join, cells=cells)
    return _by_platform(shape, cells, lambda x: tpu.merge((x,), cells), by_xla, x)


def _join_forward(x, cells):
    return _join(x, cells), None


def _join_backward(cells, _, cotangent):
    # What fills up a cell has no part in the result.
    return (_split(cotangent, cells, False)[0],)


_join.defvjp(_join_forward, _join_backward)


def _by_platform(shape, cells, by_kernel, by_xla, *arrays):
    """The platform that is lowered for decides, not the one that runs."""
    offered = may_have_kernels() and tpu.takes(shape, cells)
    kernels = {"tpu": by_kernel} if offered else {}
    return jax.lax.platform_dependent(*arrays, **kernels, default=by_xla)
