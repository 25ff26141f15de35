"""Lets a process's clock follow the file CHAOS_CLOCK, which holds the seconds that it is to be ahead.

Python runs this first where it is on its path; a fork follows the file too.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

import time_machine

_FILE = Path(os.environ["CHAOS_CLOCK"])


def _follow() -> None:
    ahead, journey = 0.0, contextlib.ExitStack()
    while True:
        wanted = float(_FILE.read_text() or ahead)
        if wanted != ahead:
            journey.close()
            journey.enter_context(time_machine.travel(time.time() + wanted, tick=True))
            ahead = wanted
        time.sleep(0.1)


def _start() -> None:
    threading.Thread(target=_follow, name="chaos-clock", daemon=True).start()


_start()
os.register_at_fork(after_in_child=_start)
