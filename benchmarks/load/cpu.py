"""CPU time out of /proc."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from dev.embedded import children

_TICKS = os.sysconf("SC_CLK_TCK")


class CpuMeter:
    """Reads what groups of processes have used, in seconds of CPU (user and system)."""

    def __init__(self, groups: Mapping[str, list[int]]) -> None:
        """Take the process ids of each group's first processes; their children count with them."""
        self._groups = groups
        self._before = self._read()

    def used(self) -> dict[str, float]:
        """Return the seconds that each group has used since the meter was made."""
        return {group: seconds - self._before[group] for group, seconds in self._read().items()}

    def _read(self) -> dict[str, float]:
        return {
            group: sum(_seconds(child) for pid in pids for child in _tree(pid)) for group, pids in self._groups.items()
        }


def resident_bytes(pid: int) -> int:
    """Return how much memory of a process is resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def api_workers(pid: int) -> list[int]:
    """Return the workers that an API's first process has started."""
    return [child for child in children(pid) if b"spawn_main" in _command(child)]


def _command(pid: int) -> bytes:
    with suppress(OSError):  # ended meanwhile
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for child in children(pid):
        yield from _tree(child)


def _seconds(pid: int) -> float:
    """Return a process's own seconds, and those of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:  # ended meanwhile; its parent has its seconds
        return 0
    return sum(int(ticks) for ticks in fields[11:15]) / _TICKS  # utime, stime, cutime, cstime
