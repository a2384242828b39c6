"""Contestants that take turns, each in a process of its own.

So thread pools do not meet, and a busy machine disturbs all alike: A B C A B C.
"""

import contextlib
import dataclasses
import multiprocessing
import time
from collections.abc import Callable
from typing import Any, Protocol


class Contestant(Protocol):
    """Work that can be done again and again; `facts` is what to report of it."""

    facts: dict[str, Any]

    def send(self) -> Any:
        """Starts the work once, not waiting, and returns something to check."""

    def wait(self) -> None:
        """Returns when the device has nothing left to do."""

    def rest(self) -> None:
        """Gives back what memory it can."""

    def check(self, result: Any) -> None:
        """Raises RaceError if what came of the work cannot be right."""

    def end(self) -> None:
        """Does what is left after the last turn."""


class RaceError(Exception):
    """A contestant could not go on."""


@dataclasses.dataclass
class Entry:
    """What came of one contestant.

    Attributes:
      seconds: of one piece of work, a turn each.
      facts: what it reported of itself.
      failed: why it did not finish, if so.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    failed: str | None = None


def race(
    makers: dict[str, Callable[[], Contestant]], turns: int, pieces: int, *, restart: bool = False
) -> dict[str, Entry]:
    """Times all contestants in turns; one that fails is named with its reason.

    Args:
      makers: what makes each contestant, in its process.
      turns: turns of each.
      pieces: pieces of work a turn.
      restart: one in memory at a time: slow.
    """
    entries = {name: Entry() for name in makers}
    workers: dict[str, _Worker] = {}
    for turn in range(turns + 1):
        for name, entry in entries.items():
            if entry.failed or (turn == 0 and restart):
                continue
            try:
                if name not in workers:
                    workers[name] = _Worker(makers[name])
                    entry.facts = workers[name].facts
                if turn:  # All are started before the first turn.
                    entry.seconds.append(workers[name].run(pieces) / pieces)
                if restart:
                    workers.pop(name).stop()
            except RaceError as error:
                entry.failed = str(error)
                workers.pop(name, None)
    for worker in workers.values():
        worker.stop()
    return entries


class _Worker:
    def __init__(self, make: Callable[[], Contestant]):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make))
        self._process.start()
        theirs.close()
        self.facts = self._receive()

    def run(self, pieces: int) -> float:
        self._pipe.send(pieces)
        return self._receive()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join()

    def _receive(self) -> Any:
        try:
            reply = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise RaceError(f"its process ended with {self._process.exitcode}") from None
        if isinstance(reply, RaceError):
            self._process.join()
            raise reply
        return reply


def _work(pipe: Any, make: Callable[[], Contestant]) -> None:
    """Serves one contestant's turns until told to stop."""
    try:
        begin = time.perf_counter()
        contestant = make()
        _run(contestant, 2)
        pipe.send(contestant.facts | {"start_seconds": time.perf_counter() - begin})
        contestant.rest()
        while pieces := pipe.recv():
            _run(contestant, 1)  # Memory that was given back is taken again.
            pipe.send(_run(contestant, pieces))
            contestant.rest()
    except Exception as error:  # Whatever it is goes into the report.
        pipe.send(RaceError(f"{type(error).__name__}: {error}"[:2000]))
        return
    contestant.end()


def _run(contestant: Contestant, pieces: int) -> float:
    """Seconds that so many pieces of work take."""
    contestant.wait()
    begin = time.perf_counter()
    for _ in range(pieces):
        result = contestant.send()
    contestant.wait()
    seconds = time.perf_counter() - begin
    contestant.check(result)
    return seconds
