"""A request to stop, which all processes of a run follow at the same step."""

import signal
import threading
from typing import Any

import jax

from dit_jax.parallel import hosts


class StopRequest:
    """Hears SIGTERM while the loop runs, whichever process it reaches."""

    def __init__(self):
        self._heard = False
        self._asked: jax.Array | None = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def agreed(self) -> bool:
        """Whether to stop now: the same on all processes. To be called once a step.

        Among several processes a request counts one step later, so that the exchange travels behind
        a step and the devices never wait for the answer.
        """
        if hosts.alone():
            return self._heard
        asked, self._asked = self._asked, hosts.anywhere(self._heard)
        return asked is not None and bool(asked)

    def _hear(self, *_: Any) -> None:
        self._heard = True
