"""Parts of arrays on their way from files to files."""

import collections
from collections.abc import Iterable

from tensorstore import Future, TensorStore

# What may be on its way at once: memory holds it about twice, as it is read and as it is written.
IN_FLIGHT_BYTES = 1 << 30


def copy_parts(parts: Iterable[tuple[TensorStore, TensorStore]]) -> None:
    """Copies each part to its place, several at once up to `IN_FLIGHT_BYTES`."""
    pending: collections.deque[tuple[int, Future]] = collections.deque()
    held = 0

    def finish_oldest() -> int:
        size, future = pending.popleft()
        future.result()
        return size

    try:
        for old, new in parts:
            size = old.size * old.dtype.numpy_dtype.itemsize
            while pending and held + size > IN_FLIGHT_BYTES:
                held -= finish_oldest()
            pending.append((size, new.write(old)))
            held += size
        while pending:
            finish_oldest()
    finally:
        for _, future in pending:  # After a failure: nothing may be written any more.
            future.exception()
