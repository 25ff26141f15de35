"""Time as a test may judge it: without the stalls of a machine that others use as well."""

import threading
import time
from collections.abc import Callable
from typing import Any, Self

TICK_SECONDS = 0.01
STALL_SECONDS = 0.02


class Stopwatch:
    """Measures how long its block took, less the stalls that a thread beside it met meanwhile.

    A wait of the code under test counts in full: the thread ticks on. It doesn't when the machine gives neither a turn,
    nor while the block holds the interpreter's lock: so it is for what waits, not for what computes.
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
