"""The history of a run: JSON lines, written by the load, the probe and the subscriber, read by the checker alone.

Every line has a `kind`; all moments are seconds since the epoch, by the clock of this machine, which is the
database's too.

| kind | written | fields |
| --- | --- | --- |
| `phase` | as a fault's turn begins | `at`, `fault`, `lasts`, `may_double` |
| `faulty` | as the fault begins | `at`, `fault` |
| `healed` | as the fault is over | `at`, `fault` |
| `recovered` | as all is well again, or `seconds` is null | `at`, `fault`, `seconds` |
| `op` | a request and its answer | `op`, `member`, `minutes`, `invoked`, `completed`, `status`, `code`, `body`, … |
| `event` | an event that the subscriber heard | `at`, `type`, `member`, `payload` |
| `subscriber` | as it lost or found Redis | `at`, `connected` |
| `probe` | each look at the timers | `at`, `missing` (whole seconds without a timer) |
| `row` | at the end, each session in the database | `id`, `member`, `started`, `expires`, `ended` |
| `end` | last | `at` |
"""

import json
import threading
import time
from pathlib import Path
from typing import Any


class History:
    """Appends lines; any thread may."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w")
        self._lock = threading.Lock()

    def write(self, kind: str, **fields: Any) -> None:
        """Append a line."""
        line = json.dumps({"kind": kind, **fields}, separators=(",", ":"))
        with self._lock:
            self._file.write(line + "\n")

    def mark(self, kind: str, **fields: Any) -> float:
        """Append a line with the present moment, and return that."""
        at = time.time()
        self.write(kind, at=at, **fields)
        return at

    def read(self) -> list[dict[str, Any]]:
        """Return all the lines."""
        with self._lock:
            self._file.flush()
            return [json.loads(line) for line in self.path.read_text().splitlines()]
