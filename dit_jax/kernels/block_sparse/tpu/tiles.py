"""What the kernels over query blocks share: their operands' blocks, and a tile's logits."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dit_jax.kernels.block_sparse.operands import MASKED
from dit_jax.kernels.block_sparse.tpu.plan import Plan, additive

# Query rows of a step, at most: several small blocks are interleaved, to hide each other's latency.
_STEP_ROWS, _INTERLEAVED = 256, 8


def matmul(x: jax.Array, y: jax.Array, contract: tuple) -> jax.Array:
    """A product of two matrices over the given axes, accumulated in float32."""
    return jax.lax.dot_general(x, y, (contract, ((), ())), preferred_element_type=jnp.float32)


class CoarseRefs(NamedTuple):
    """References of a step's group of coarse keys, their values and weights."""

    k: Any
    v: Any
    log_weight: Any


@dataclasses.dataclass
class Operands:
    """References of a kernel besides queries, keys and values; None where there is none."""

    coarse: list[CoarseRefs]
    entries: Any
    mask_ids: Any = None
    masks: Any = None
    allowed: Any = None


class QuerySteps:
    """The grid (samples and heads, steps of query blocks), and what of each operand a step sees."""

    def __init__(self, q: jax.Array, k: jax.Array, plan: Plan, coarse: list):
        self.plan, self.coarse = plan, coarse
        self.batch, self.queries, self.width = q.shape
        self.keys, self.scale = k.shape[1], q.shape[2] ** -0.5
        self.itemsize = q.dtype.itemsize
        self.blocks = self._blocks_per_step()
        self.step_rows = self.blocks * plan.query_block
        self.grid = (self.batch, self.queries // self.step_rows)
        self.statistic_shape = (*self.grid, 1, self.step_rows)
        arrays = self._arrays()
        self.names = tuple(arrays)
        self.operands = (*arrays.values(), *(x for keys in coarse for x in self._coarse(*keys)))

    def _blocks_per_step(self) -> int:
        """Query blocks that are interleaved, of one group of those that share coarse keys."""
        blocks = self.plan.entries.shape[1]
        blocks = math.gcd(blocks, *(blocks // k.shape[1] for k, *_ in self.coarse))
        wanted = max(1, min(_STEP_ROWS // self.plan.query_block, _INTERLEAVED))
        return max(n for n in range(1, wanted + 1) if blocks % n == 0)

    def _arrays(self) -> dict[str, jax.Array]:
        """The operands that are there, in the shapes that the kernels read."""
        plan, steps = self.plan, self.grid[1]
        arrays = {"entries": plan.entries.reshape(-1, steps, self.blocks, 1 + plan.listed)}
        if plan.masks is not None:
            ids = plan.mask_ids.reshape(-1, steps, self.blocks, plan.listed)
            arrays |= {"mask_ids": ids, "masks": plan.masks}
        if plan.allowed is not None:
            allowed = additive(jnp.moveaxis(plan.allowed, 3, 2))
            allowed = allowed.reshape(
                -1, steps, self.blocks, allowed.shape[2], math.prod(allowed.shape[3:])
            )
            # Columns spread over their keys, by a product: repeating them in lanes is slow.
            keys = plan.listed * plan.key_block // allowed.shape[-1]
            spread = np.kron(np.eye(allowed.shape[-1]), np.ones(keys)).astype(allowed.dtype)
            arrays["allowed"] = allowed @ spread
        return arrays

    def _coarse(self, k: jax.Array, v: jax.Array, weight: jax.Array) -> CoarseRefs:
        """A set of coarse keys, with a row of weights for each block of a step, or for all."""
        blocks, steps = self.plan.entries.shape[1], self.grid[1]
        if 1 < weight.shape[1] < blocks:  # Some of a step's blocks share a row.
            weight = jnp.repeat(weight, blocks // weight.shape[1], axis=1)
        rows = max(1, weight.shape[1] // steps)
        return CoarseRefs(k, v, weight.reshape(len(weight), -1, rows, weight.shape[-1]))

    def unpack(self, refs: tuple) -> tuple[Operands, tuple]:
        """The operands' references by name, and the rest."""
        named, count = len(self.names), len(self.operands)
        coarse = [CoarseRefs(*refs[i : i + 3]) for i in range(named, count, 3)]
        found = dict(zip(self.names, refs[:named], strict=True))
        return Operands(coarse=coarse, **found), refs[count:]

    def specs(self, rows: tuple, whole: tuple) -> list[pl.BlockSpec]:
        """Blocks of the operands, of arrays [BH, N, D] by the step, and of whole [BH, M, D]."""
        names = (*self.names, *["coarse"] * 3 * len(self.coarse))
        found = [self._spec(name, x) for name, x in zip(names, self.operands, strict=True)]
        found += [self.rows(x.shape[-1]) for x in rows]
        found += [
            # Read once a head, so there is nothing to be read ahead.
            pl.BlockSpec((1, *x.shape[1:]), lambda b, i: (b, 0, 0), pipeline_mode=pl.Buffered(1))
            for x in whole
        ]
        return found

    def _spec(self, name: str, x: jax.Array) -> pl.BlockSpec:
        if name == "masks":
            return pl.BlockSpec(x.shape, lambda b, i: (0, 0, 0))
        own, parts, steps = x.shape[0] > 1, x.shape[1], self.grid[1]
        memory = pltpu.SMEM if name in ("entries", "mask_ids") else pltpu.VMEM

        def index(b: jax.Array, i: jax.Array) -> tuple:
            part = jax.lax.div(i, steps // parts)
            return (b if own else 0, part, *(0,) * (x.ndim - 2))

        return pl.BlockSpec((1, 1, *x.shape[2:]), index, memory_space=memory)

    def rows(self, width: int) -> pl.BlockSpec:
        """A step's rows of an array [BH, N, width]."""
        return pl.BlockSpec((1, self.step_rows, width), lambda b, i: (b, i, 0))

    def statistic(self) -> pl.BlockSpec:
        """A step's row of an array [BH, steps, 1, rows]."""
        return pl.BlockSpec((1, 1, 1, self.step_rows), lambda b, i: (b, i, 0, 0))

    def groups(self, x: jax.Array) -> pl.BlockSpec:
        """Coarse keys or values of a step's group, of an array [BH, G, C, D]."""
        return self._spec("coarse", x)

    def starts_group(self, number: int) -> jax.Array:
        """Whether this step is the first of those that share a group of a set of coarse keys."""
        steps = self.grid[1] // self.coarse[number][0].shape[1]
        return jax.lax.rem(pl.program_id(1), steps) == 0

    def block(self, i: int) -> slice:
        """Rows of the step's query block i."""
        return slice(i * self.plan.query_block, (i + 1) * self.plan.query_block)

    def walk(self, operands: Operands, tile: Callable, states: list) -> list:
        """Folds `tile(number, states)` over the tiles of the step's longest list."""
        if self.plan.full:  # Unrolled: a tile's products overlap the softmax of the one before.
            for number in range(self.plan.listed // self.plan.keys_per_tile):
                states = tile(number, states)
            return states
        counts = [operands.entries[0, 0, i, 0] for i in range(self.blocks)]
        tiles = ceil_div(functools.reduce(jnp.maximum, counts), self.plan.keys_per_tile)
        return jax.lax.fori_loop(0, tiles, tile, states)

    @property
    def vmem(self) -> int:
        """Bytes of VMEM: keys and values of a head, and as much as a step's tiles may take."""
        lanes = -(-self.width // 128) * 128
        return 2 * self.keys * lanes * self.itemsize + (24 << 20)

    def cost(self, products: int) -> pl.CostEstimate:
        """Costs of so many products of queries and listed keys."""
        listed = self.plan.listed * self.plan.key_block
        listed += sum(k.shape[2] for k, *_ in self.coarse)
        pairs = self.batch * self.queries * listed
        moved = self.batch * (2 * self.queries + 2 * self.keys) * self.width * self.itemsize
        return pl.CostEstimate(
            flops=2 * products * pairs * self.width, transcendentals=pairs, bytes_accessed=moved
        )


def key_tile(
    operands: Operands, i: int, number: jax.Array | int, steps: QuerySteps, *refs: Any
) -> list:
    """The key blocks of a tile of query block i's list, joined, from each of `refs`."""
    plan = steps.plan
    first = 1 + number * plan.keys_per_tile
    starts = [
        pl.multiple_of(operands.entries[0, 0, i, first + j] * plan.key_block, plan.key_block)
        for j in range(plan.keys_per_tile)
    ]
    return [
        jnp.concatenate([ref[0, pl.ds(start, plan.key_block)] for start in starts]) for ref in refs
    ]


def tile_logits(
    q: jax.Array,
    keys: jax.Array,
    operands: Operands,
    i: int,
    number: jax.Array | int,
    steps: QuerySteps,
) -> jax.Array:
    """Masked logits of query block i and a tile of its list, float32."""
    plan, per = steps.plan, steps.plan.keys_per_tile
    logits = matmul(q, keys, ((1,), (1,))) * steps.scale
    if not plan.full:
        entry = jax.lax.broadcasted_iota(jnp.int32, (1, len(keys)), 1)
        entry = jax.lax.div(entry, plan.key_block)
        listed = entry + number * per < operands.entries[0, 0, i, 0]
        logits = jnp.where(listed, logits, MASKED)
    if operands.masks is not None:
        ids = [operands.mask_ids[0, 0, i, number * per + j] for j in range(per)]
        logits += jnp.concatenate([operands.masks[n] for n in ids], axis=1).astype(jnp.float32)
    if operands.allowed is not None:
        first = number * len(keys)
        if not plan.full:
            first = pl.multiple_of(first, 128)
        columns = pl.ds(first, len(keys))
        logits = add_rows(logits, operands.allowed[0, 0, i, :, columns].astype(jnp.float32))
    return logits


def coarse_logits(q: jax.Array, coarse: CoarseRefs, i: int, steps: QuerySteps) -> jax.Array:
    """Weighted logits of query block i and a set of its coarse keys, float32."""
    logits = matmul(q, coarse.k[0, 0], ((1,), (1,))) * steps.scale
    weight = coarse.log_weight[0, 0]
    if (rows := len(weight)) >= steps.blocks:
        weight = weight[i * rows // steps.blocks : (i + 1) * rows // steps.blocks]
    return add_rows(logits, weight)


def ceil_div(x: jax.Array, y: int) -> jax.Array:
    """ceil(x / y) of what is not negative."""
    # Not `//`, whose lowering for negative numbers asks what TPU it is on.
    return jax.lax.div(x + y - 1, y)


def add_rows(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Adds each of `rows` [R, M] to as many rows of `x` [n, M]."""
    if len(rows) == 1:
        return x + rows
    parts = x.reshape(len(rows), -1, x.shape[1])
    return (parts + rows[:, None]).reshape(x.shape)


def as_row(column: jax.Array) -> jax.Array:
    """A column [n, 1] as a row [1, n]."""
    return jnp.broadcast_to(column, (len(column), 128)).T[:1]


def as_column(row: jax.Array) -> jax.Array:
    """A row [1, n] as a column [n, 1]."""
    return jnp.broadcast_to(row, (128, row.shape[1])).T[:, :1]
