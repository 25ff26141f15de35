"""The record of periodic jobs' runs, kept in Redis for metrics and operators, whichever process ran them."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from redis import Redis

from afterhours_service.stores.redis import after_commit

KEY = "after-hours:runs"


@dataclass
class Run:
    """A periodic job's record since Redis was last emptied.

    finished_at: when a run last finished, in seconds since the epoch. seconds: how long all runs took together.
    last_seconds, last_rows: of the last run alone, or of its last slice.
    """

    finished_at: float | None = None
    finished: int = 0
    seconds: float = 0.0
    rows: dict[str, int] = field(default_factory=dict)
    last_seconds: float | None = None
    last_rows: dict[str, int] = field(default_factory=dict)


@contextmanager
def recorded(job: str) -> Iterator[dict[str, int | bool]]:
    """Time a run, and record the row counts that the caller puts into the yielded dict.

    Put `done: False` there if the run was a slice and more is left. A run that raises is not recorded.
    """
    begin = time.monotonic()
    counts: dict[str, int | bool] = {}
    yield counts
    done = counts.pop("done", True)
    seconds = time.monotonic() - begin
    with after_commit() as pipeline:
        pipeline.hincrbyfloat(KEY, f"{job} seconds", seconds)
        pipeline.hset(KEY, f"{job} last", json.dumps({"seconds": seconds, "rows": counts}))
        for what, rows in counts.items():
            pipeline.hincrby(KEY, f"{job} rows {what}", int(rows))
        if done:
            pipeline.hincrby(KEY, f"{job} finished", 1)
            pipeline.hset(KEY, f"{job} finished_at", str(time.time()))


def recorded_runs(redis: Redis) -> dict[str, Run]:
    """Return the record of each job, by its name. Raises RedisError."""
    runs: dict[str, Run] = {}
    entries = cast("Mapping[bytes, bytes]", redis.hgetall(KEY))
    for name, value in sorted(entries.items()):
        job, what, *step = name.decode().split(" ", 2)
        run = runs.setdefault(job, Run())
        if what == "rows":
            run.rows[step[0]] = int(value)
        elif what == "seconds":
            run.seconds = float(value)
        elif what == "finished":
            run.finished = int(value)
        elif what == "finished_at":
            run.finished_at = float(value)
        elif what == "last":
            last = json.loads(value)
            run.last_seconds, run.last_rows = last["seconds"], last["rows"]
    return runs
