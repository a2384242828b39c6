"""Which parts of an array are stored as one, for given readers."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

# Large enough for the bandwidth of a disk or a bucket, small enough that several are unpacked at
# once.
TARGET_BYTES = 128 << 20


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How an array is written anew.

    Attributes:
      chunk: shape of the new parts; every shard is made of whole ones.
      block: shape of what is read and written at once: whole parts, old as well as new. So each
        old part is read once, and memory holds a block however large the array is.
    """

    chunk: tuple[int, ...]
    block: tuple[int, ...]

    def blocks(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        """The places of the blocks of an array of this shape."""
        starts = (range(0, size, step) for size, step in zip(shape, self.block))
        for at in itertools.product(*starts):
            yield tuple(
                slice(first, min(first + step, size))
                for first, step, size in zip(at, self.block, shape)
            )


def choose_chunks(
    shape: tuple[int, ...],
    itemsize: int,
    old: tuple[int, ...],
    shard: tuple[int, ...],
    target_bytes: int = TARGET_BYTES,
) -> Chunking:
    """Chooses parts that lie within a reader's shards and are neither tiny nor huge.

    Args:
      shape: shape of the array.
      itemsize: bytes a value.
      old: shape of the parts as they are.
      shard: shape of what one device reads; it divides `shape`.
      target_bytes: parts are joined up to this size and cut down to it, but a block is at least
        one old part.
    """
    # An axis whose old parts do not divide it is taken whole: no cut would suit both.
    block = [o if n % o == 0 else n for n, o in zip(shape, old)]
    chunk = [math.gcd(b, s) for b, s in zip(block, shard)]
    for axis in reversed(range(len(shape))):
        if chunk[axis] == block[axis]:  # Old parts lie within shards: neighbours may be joined.
            room = target_bytes // (math.prod(block) * itemsize)
            joined = _largest_divisor(shard[axis] // chunk[axis], room)
            chunk[axis] *= joined
            block[axis] *= joined
    for axis, size in enumerate(chunk):
        rest = math.prod(chunk) // size * itemsize
        chunk[axis] = _largest_divisor(size, target_bytes // rest)
    return Chunking(tuple(chunk), tuple(block))


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is not above `limit`; at least 1."""
    return max(d for d in range(1, number + 1) if number % d == 0 and (d <= limit or d == 1))
