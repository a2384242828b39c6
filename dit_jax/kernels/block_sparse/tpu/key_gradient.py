"""The gradient of keys and values: a step has some blocks of keys, and the lists transposed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dit_jax.kernels.block_sparse.operands import MASKED
from dit_jax.kernels.block_sparse.tpu.plan import Plan
from dit_jax.kernels.block_sparse.tpu.tiles import ceil_div, matmul

# Key rows of a step; small blocks are interleaved, to hide each other's latency.
_STEP_ROWS = 128


def key_gradient(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    plan: Plan,
    dout: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    interpret: Any,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of keys and values [BH, M, D]; arguments as for the gradient of queries."""
    steps = KeySteps(q, k, plan)
    rows = pl.BlockSpec((1, steps.blocks * plan.key_block, k.shape[-1]), lambda b, j: (b, j, 0))
    lse, delta = (x.reshape(len(q), -1, plan.query_block) for x in (lse, delta))
    whole = (q, dout, lse, delta)
    return pl.pallas_call(
        functools.partial(_kernel, steps=steps),
        grid=steps.grid,
        in_specs=[*steps.specs(), rows, rows, *(_whole(x) for x in whole)],
        out_specs=[rows, rows],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=steps.vmem
        ),
        cost_estimate=steps.cost(),
        interpret=interpret,
        name="block_sparse_key_gradient",
    )(*steps.operands.values(), k, v, *whole)


def transpose(plan: Plan, key_blocks: int) -> tuple[jax.Array, jax.Array]:
    """The lists of key blocks: entries sorted by their key block, and where each block's start.

    Entry e is entry e % K of the list of query block e // K.

    Returns:
      Entries [G, P] int32, P = NQ * K, and starts [G, key_blocks + 1] int32.
    """
    counts, indices = plan.entries[..., :1], plan.entries[..., 1:]
    keys = jnp.where(jnp.arange(plan.listed) < counts, indices, key_blocks)
    keys = keys.reshape(len(keys), -1)
    numbers = jnp.broadcast_to(jnp.arange(keys.shape[1], dtype=jnp.int32), keys.shape)
    keys, numbers = jax.lax.sort((keys, numbers), num_keys=1)
    blocks = jnp.arange(key_blocks + 1, dtype=jnp.int32)
    starts = jax.vmap(lambda row: jnp.searchsorted(row, blocks, method="scan"))(keys)
    return numbers, starts.astype(jnp.int32)


class KeySteps:
    """The grid (samples and heads, steps of key blocks) and the transposed lists."""

    def __init__(self, q: jax.Array, k: jax.Array, plan: Plan):
        self.plan, self.scale = plan, q.shape[-1] ** -0.5
        self.batch, self.queries, self.width = q.shape
        self.keys, self.itemsize = k.shape[1], q.dtype.itemsize
        blocks = self.keys // plan.key_block
        wanted = max(1, _STEP_ROWS // plan.key_block)
        self.blocks = max(n for n in range(1, wanted + 1) if blocks % n == 0)
        self.grid = (self.batch, blocks // self.blocks)
        numbers, starts = transpose(plan, blocks)
        self.operands = {"numbers": self._listed(numbers), "starts": starts[:, None]}
        if plan.masks is not None:
            ids = plan.mask_ids.reshape(len(plan.mask_ids), -1)
            ids = jnp.take_along_axis(jnp.broadcast_to(ids, numbers.shape), numbers, axis=1)
            self.operands["mask_ids"] = self._listed(ids)
            self.operands["masks"] = plan.masks.swapaxes(1, 2)
        if plan.allowed is not None:
            self.operands["allowed"] = self._bits(plan.allowed)

    def _listed(self, x: jax.Array) -> jax.Array:
        """[G, 1, P'], so that the last tile may read beyond the end."""
        return jnp.pad(x, ((0, 0), (0, self.plan.queries_per_tile)))[:, None]

    def _bits(self, allowed: jax.Array) -> jax.Array:
        """[G, P, query_block] int32: bit c says that the query may meet the entry's part c."""
        bits = jnp.sum(allowed * (1 << jnp.arange(allowed.shape[-1])), axis=-1, dtype=jnp.int32)
        bits = jnp.repeat(bits, self.plan.query_block // bits.shape[-1], axis=-1)
        return bits.reshape(len(bits), -1, bits.shape[-1])

    def specs(self) -> list[pl.BlockSpec]:
        """Blocks of the operands: all lists of a head, which lie together."""
        found = []
        for name, x in self.operands.items():
            if name == "masks":
                found.append(pl.BlockSpec(x.shape, lambda b, j: (0, 0, 0)))
            elif name == "allowed":
                found.append(_whole(x))
            else:
                found.append(_whole(x, memory=pltpu.SMEM))
        return found

    @property
    def vmem(self) -> int:
        """Bytes of VMEM: queries and cotangents of a head, and as much as the tiles may take."""
        lanes = -(-self.width // 128) * 128
        bits = self.operands["allowed"][0].size * 4 if "allowed" in self.operands else 0
        return self.queries * (2 * lanes * self.itemsize + 8) + bits + (24 << 20)

    def cost(self) -> pl.CostEstimate:
        """Costs, were every list full."""
        pairs = self.batch * self.queries * self.plan.listed * self.plan.key_block
        moved = self.batch * (2 * self.queries + 4 * self.keys) * self.width * self.itemsize
        return pl.CostEstimate(
            flops=8 * pairs * self.width, transcendentals=pairs, bytes_accessed=moved
        )


def _whole(x: jax.Array, memory: Any = pltpu.VMEM) -> pl.BlockSpec:
    own = x.shape[0] > 1
    index = lambda b, j: (b if own else 0, *(0,) * (x.ndim - 1))  # noqa: E731
    mode = pl.Buffered(1) if memory == pltpu.VMEM else None
    return pl.BlockSpec((1, *x.shape[1:]), index, memory_space=memory, pipeline_mode=mode)


def _kernel(*refs: Any, steps: KeySteps) -> None:
    count = len(steps.operands)
    lists = dict(zip(steps.operands, refs[:count], strict=True))
    k_ref, v_ref, *whole, dk_ref, dv_ref = refs[count:]
    plan, size = steps.plan, steps.plan.key_block
    slices = [slice(j * size, (j + 1) * size) for j in range(steps.blocks)]
    keys = [(k_ref[0, rows], v_ref[0, rows]) for rows in slices]
    first = pl.program_id(1) * steps.blocks
    starts = [lists["starts"][0, 0, first + j] for j in range(steps.blocks + 1)]

    def tile(number: jax.Array, gradients: list) -> list:
        new = []
        for j, (dk, dv) in enumerate(gradients):
            k, v = keys[j]
            begin = starts[j] + number * plan.queries_per_tile
            q, dout, lse, delta = _query_tile(lists, begin, starts[j + 1], whole, plan)
            logits = matmul(k, q, ((1,), (1,))) * steps.scale
            logits = _mask(logits, lists, begin, starts[j + 1], plan)
            weights = jnp.exp(logits - lse)
            dweights = matmul(v, dout, ((1,), (1,)))
            dlogits = weights * (dweights - delta)
            dv = dv + matmul(weights.astype(dout.dtype), dout, ((1,), (0,)))
            dk = dk + matmul(dlogits.astype(q.dtype), q, ((1,), (0,)))
            new.append((dk, dv))
        return new

    longest = functools.reduce(
        jnp.maximum, [end - start for start, end in zip(starts, starts[1:], strict=False)]
    )
    zero = jnp.zeros((size, steps.width), jnp.float32)
    tiles = ceil_div(longest, plan.queries_per_tile)
    gradients = jax.lax.fori_loop(0, tiles, tile, [(zero, zero)] * steps.blocks)
    for rows, (dk, dv) in zip(slices, gradients, strict=True):
        dk_ref[0, rows] = (dk * steps.scale).astype(dk_ref.dtype)
        dv_ref[0, rows] = dv.astype(dv_ref.dtype)


def _positions(begin: jax.Array, end: jax.Array, plan: Plan) -> list[jax.Array]:
    """Where a tile's entries stand in the lists; those beyond a list's end repeat an entry."""
    last = jnp.maximum(end - 1, 0)
    return [jnp.minimum(begin + i, last) for i in range(plan.queries_per_tile)]


def _query_tile(lists: dict, begin: jax.Array, end: jax.Array, whole: list, plan: Plan) -> list:
    """Rows of queries and cotangents [T, D], and of statistics [1, T], of a tile of a list."""
    q_ref, dout_ref, lse_ref, delta_ref = whole
    blocks = [
        jax.lax.div(lists["numbers"][0, 0, p], plan.listed) for p in _positions(begin, end, plan)
    ]
    rows = [pl.multiple_of(block * plan.query_block, plan.query_block) for block in blocks]
    tall = [
        jnp.concatenate([ref[0, pl.ds(row, plan.query_block)] for row in rows])
        for ref in (q_ref, dout_ref)
    ]
    wide = [
        jnp.concatenate([ref[0, pl.ds(block, 1)] for block in blocks], axis=1)
        for ref in (lse_ref, delta_ref)
    ]
    return tall + wide


def _mask(
    logits: jax.Array, lists: dict, begin: jax.Array, end: jax.Array, plan: Plan
) -> jax.Array:
    """Masks logits [key_block, T] of a tile: what is beyond the list, and what may not meet."""
    entry = jax.lax.broadcasted_iota(jnp.int32, (1, logits.shape[1]), 1)
    entry = jax.lax.div(entry, plan.query_block)
    logits = jnp.where(begin + entry < end, logits, MASKED)
    positions = _positions(begin, end, plan)
    if "masks" in lists:
        ids = [lists["mask_ids"][0, 0, p] for p in positions]
        logits += jnp.concatenate([lists["masks"][n] for n in ids], axis=1).astype(jnp.float32)
    if "allowed" in lists:
        numbers = [lists["numbers"][0, 0, p] for p in positions]
        bits = jnp.concatenate([lists["allowed"][0, pl.ds(n, 1)] for n in numbers], axis=1)
        parts = plan.allowed.shape[-1]
        rows = len(logits) // parts
        seen = [jnp.where((bits >> c) & 1 == 1, 0.0, MASKED) for c in range(parts)]
        logits += jnp.concatenate(
            [jnp.broadcast_to(row, (rows, row.shape[1])) for row in seen], axis=0
        )
    return logits
