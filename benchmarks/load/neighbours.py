"""Who else has the machine: the share of its cores that a hypervisor gives to others, and patience with it."""

import time
from pathlib import Path

QUIET = 0.1
LOOK_SECONDS = 2
LONGEST_SECONDS = 20
_patience = 15 * 60.0  # seconds, of one command


class Neighbours:
    """Measures how much CPU other programs have used since it was made; none on an otherwise idle machine."""

    def __init__(self) -> None:
        """Look for the first time."""
        self._before = _ticks()

    def share(self) -> float:
        """Return the share that others had, from 0 to 1."""
        stolen, every = (after - before for before, after in zip(self._before, _ticks(), strict=True))
        return stolen / every if every else 0.0


def wait_for_quiet() -> None:
    """Wait until others take less than QUIET; for 20 s at most, and a quarter of an hour in all of a command."""
    global _patience  # noqa: PLW0603 - there is one machine, and one command
    begin = time.monotonic()
    while _patience > 0 and time.monotonic() - begin < LONGEST_SECONDS:
        neighbours = Neighbours()
        time.sleep(LOOK_SECONDS)
        if neighbours.share() < QUIET:
            break
        _patience -= LOOK_SECONDS


def _ticks() -> tuple[int, int]:
    """Return those that were stolen, and all; see proc_stat(5)."""
    ticks = [int(number) for number in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)
