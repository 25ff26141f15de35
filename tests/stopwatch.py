"""Time on a busy machine: how long the code took, and waiting without a fixed sleep."""

import threading
import time
from collections.abc import Callable
from typing import Any, Self

TICK_SECONDS = 0.01
STALL_SECONDS = 0.02


class Stopwatch:
    """Measures how long its block took, less the time in which the machine ran neither the block nor a second thread.

    Waits of the code under test count in full: the second thread keeps ticking. Code that holds the interpreter's lock
    looks like a stall, so measure waiting with this, not computing.
    """

    seconds = 0.0

    def __enter__(self) -> Self:
        self._done = threading.Event()
        self._stalled = 0.0
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()
        self._begun = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        took = time.perf_counter() - self._begun
        self._done.set()
        self._thread.join()
        self.seconds = took - self._stalled

    def _tick(self) -> None:
        last = time.perf_counter()
        while not self._done.wait(TICK_SECONDS):
            now = time.perf_counter()
            late = now - last - TICK_SECONDS
            self._stalled += late if late > STALL_SECONDS else 0
            last = now


def eventually(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until the condition holds, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(TICK_SECONDS)
    return result
