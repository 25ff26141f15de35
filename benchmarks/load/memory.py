"""What timers cost in Redis."""

import time
from typing import NamedTuple

from benchmarks.load.members import HOUR, drop_sessions, seed_sessions
from benchmarks.load.stack import RECONCILE, SCHEDULED, Stack, wait_for


class Memory(NamedTuple):
    """Bytes that Redis holds on behalf of sessions, and the session timers among them."""

    bytes: int
    timers: int


def measure(stack: Stack, *, first: int, last: int) -> Memory:
    """Give the members numbered first…last sessions that expire over an hour, and see what Redis holds for them.

    Nobody before `last` has another.
    """
    drop_sessions(stack, 1, last)
    stack.redis.flushall()
    wait_for(lambda: stack.redis.zscore(SCHEDULED, RECONCILE) is not None, 10)
    stack.reconcile_now()
    before = _used(stack)
    at = int(time.time()) + HOUR  # far enough for no timer to go off meanwhile, however slow the machine
    seed_sessions(stack, first, last, at=at, spread=HOUR)
    stack.reconcile(at + min(HOUR, last - first + 1) - 1)
    time.sleep(1)
    return Memory(_used(stack) - before, stack.timers())


def _used(stack: Stack) -> int:
    used: int = stack.redis.info("memory")["used_memory"]  # type: ignore[index]
    return used
