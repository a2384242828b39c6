"""Cells by Mosaic kernels: a product with a constant matrix for each cell.

Its rows are the cell's tokens in their new order and the sums of its smaller cells, so that a token
is read once, with all heads in lanes, and written once, with a head's features in lanes. (XLA takes
three passes of transpositions, and one for each kind of mean.)
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dit_jax.kernels.cells.geometry import Cells

# Elements of all heads that a step has, at most; and tokens of a cell.
_ELEMENTS, _TOKENS = 1 << 18, 512


def takes(shape: tuple[int, ...], cells: Cells) -> bool:
    """Whether the kernels take tokens [B, N, H, D]: whole cells that fit into memory."""
    tokens = math.prod(cells.sides[0])
    aligned = cells.sides[0][-1] % 8 == 0 and tokens <= _TOKENS
    return aligned and cells.valid.all() and tokens * shape[2] * shape[3] <= 2 * _ELEMENTS


def split(x: jax.Array, cells: Cells, means: bool, interpret: Any = False) -> tuple[jax.Array, ...]:
    """Tokens [B, H, N, D] in the cells' order, and means of the cells of each side."""
    steps = CellSteps(x.shape, x.dtype, cells, means)
    parts = pl.pallas_call(
        functools.partial(_split_kernel, steps=steps),
        grid=steps.grid,
        in_specs=[steps.matrix_spec, steps.grid_spec],
        out_specs=steps.part_specs,
        out_shape=[jax.ShapeDtypeStruct(shape, x.dtype) for shape in steps.part_shapes],
        compiler_params=steps.params,
        cost_estimate=steps.cost,
        interpret=interpret,
        name="split_into_cells",
    )(steps.matrix, x.reshape(steps.grid_shape))
    return tuple(part.reshape(*part.shape[:2], -1, part.shape[-1]) for part in parts)


def merge(parts: tuple[jax.Array, ...], cells: Cells, interpret: Any = False) -> jax.Array:
    """The transpose of `split`, [B, N, H, D]; of tokens alone it is the inverse."""
    batch, heads, tokens, width = parts[0].shape
    shape, dtype = (batch, tokens, heads, width), parts[0].dtype
    steps = CellSteps(shape, dtype, cells, len(parts) > 1)
    merged = pl.pallas_call(
        functools.partial(_merge_kernel, steps=steps),
        grid=steps.grid,
        in_specs=[steps.matrix_spec, *steps.part_specs],
        out_specs=steps.grid_spec,
        out_shape=jax.ShapeDtypeStruct(steps.grid_shape, dtype),
        compiler_params=steps.params,
        cost_estimate=steps.cost,
        interpret=interpret,
        name="merge_cells",
    )(steps.matrix, *(x.reshape(s) for x, s in zip(parts, steps.part_shapes, strict=True)))
    return merged.reshape(shape)


class CellSteps:
    """What a step has: some cells that lie side by side, of one sample."""

    def __init__(self, shape: tuple, dtype: Any, cells: Cells, means: bool):
        batch, _, self.heads, self.width = shape
        sides = cells.sides
        self.side, self.tokens, self.dtype = sides[0], math.prod(sides[0]), dtype
        features = self.heads * self.width
        counts = list(cells.counts)
        wanted = max(1, _ELEMENTS // (self.tokens * features))
        self.cells = max(n for n in range(1, counts[-1] + 1) if n <= wanted and not counts[-1] % n)
        counts[-1] //= self.cells
        self.grid = (batch, math.prod(counts))
        # Rows of each part: the tokens, and the cells of each side.
        self.rows = [self.tokens, *(self.tokens // math.prod(side) for side in sides if means)]
        self.matrix = jnp.asarray(_matrix(cells, self.rows), dtype)
        self.matrix_spec = pl.BlockSpec(self.matrix.shape, lambda b, i: (0, 0))
        self.grid_shape = (batch, *cells.grid, features)
        self.grid_spec = pl.BlockSpec(
            (1, *self.side[:-1], self.cells * self.side[-1], features),
            lambda b, i: (b, *_unravel(i, counts), 0),
        )
        all_cells = self.grid[1] * self.cells
        self.part_shapes = [(batch, self.heads, all_cells, n, self.width) for n in self.rows]
        self.part_specs = [
            pl.BlockSpec((1, self.heads, self.cells, n, self.width), lambda b, i: (b, 0, i, 0, 0))
            for n in self.rows
        ]
        self.params = pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=48 << 20
        )
        elements = math.prod(self.grid_shape)
        self.cost = pl.CostEstimate(
            flops=2 * elements * sum(self.rows),
            transcendentals=0,
            bytes_accessed=2 * elements * jnp.dtype(dtype).itemsize,
        )

    @property
    def precision(self) -> jax.lax.Precision | None:
        """Tokens are moved, not rounded."""
        return jax.lax.Precision.HIGHEST if self.dtype == jnp.float32 else None

    def cell(self, i: int) -> tuple[slice, ...]:
        """Where cell i is in a step's block of the grid."""
        columns = slice(i * self.side[-1], (i + 1) * self.side[-1])
        return (0, *[slice(None)] * (len(self.side) - 1), columns)

    def parts(self) -> list[tuple[int, slice, float]]:
        """Of each part its number, its rows of the matrix, and the weight of a row's sum."""
        ends = np.cumsum(self.rows)
        return [
            (n, slice(int(end - rows), int(end)), rows / self.tokens)
            for n, (rows, end) in enumerate(zip(self.rows, ends, strict=True))
        ]


def _matrix(cells: Cells, rows: list[int]) -> np.ndarray:
    """The sums that make the rows of all parts from a cell's tokens, of zeros and ones."""
    cell = Cells(cells.sides[0], cells.sides)
    tokens = math.prod(cell.grid)
    permutation = np.eye(tokens)[cell.reorder(np.arange(tokens).reshape(cell.grid)).reshape(-1)]
    return np.concatenate([permutation.reshape(n, -1, tokens).sum(1) for n in rows])


def _unravel(i: jax.Array, counts: list[int]) -> list[jax.Array]:
    """The position on each axis of step i."""
    found = []
    for n in reversed(counts):
        found.append(jax.lax.rem(i, n))
        i = jax.lax.div(i, n)
    return found[::-1]


def _split_kernel(matrix_ref: Any, x_ref: Any, *refs: Any, steps: CellSteps) -> None:
    matrix = matrix_ref[...]
    for i in range(steps.cells):
        x = _rows(x_ref[steps.cell(i)])
        rows = _product(matrix, x, 1, steps)
        for n, part, weight in steps.parts():
            for h in range(steps.heads):
                own = rows[part, h * steps.width : (h + 1) * steps.width]
                refs[n][0, h, i] = (own * weight).astype(steps.dtype)


def _merge_kernel(matrix_ref: Any, *refs: Any, steps: CellSteps) -> None:
    *refs, x_ref = refs
    for i in range(steps.cells):
        total = 0.0
        for n, part, weight in steps.parts():
            own = jnp.concatenate([refs[n][0, h, i] for h in range(steps.heads)], axis=1)
            if weight < 1:
                own = (own.astype(jnp.float32) * weight).astype(steps.dtype)
            total += _product(matrix_ref[part], own, 0, steps)
        shape = (*steps.side, total.shape[1])
        x_ref[steps.cell(i)] = total.reshape(shape).astype(steps.dtype)


def _product(matrix: jax.Array, x: jax.Array, axis: int, steps: CellSteps) -> jax.Array:
    return jax.lax.dot_general(
        matrix,
        x,
        (((axis,), (0,)), ((), ())),
        precision=steps.precision,
        preferred_element_type=jnp.float32,
    )


def _rows(x: jax.Array) -> jax.Array:
    """Joins all axes but the last; packed rows that are no whole tiles by way of float32."""
    if x.dtype == jnp.float32 or x.shape[-2] % 16 == 0:
        return x.reshape(-1, x.shape[-1])
    return x.astype(jnp.float32).reshape(-1, x.shape[-1]).astype(x.dtype)
