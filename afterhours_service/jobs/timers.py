"""Timers: jobs that rq-scheduler's sorted set holds until their second comes.

This is only the mechanism. Each feature decides which seconds it needs, as `sessions/deadlines.py` does. To arm
a timer is to add it to the sorted set; to disarm it, to remove it before it is enqueued.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import structlog
from redis import Redis
from redis.client import Pipeline
from rq.job import Job, JobStatus
from rq_scheduler import Scheduler as RqScheduler

from afterhours_service.jobs.jobs import FAILURE_SECONDS, JOB_TIMEOUT_SECONDS, TIMERS_QUEUE, job

SCHEDULED: str = RqScheduler.scheduled_jobs_key

# The periodic jobs that restore what Redis has lost.
MATCHING, RECONCILIATION = "after-hours-matching", "after-hours-reconcile"

QUEUED_SECONDS = 120  # a timer that waits longer in its queue is dropped: the reconciliation does its work

CHUNK = 1000

# Atomic, so that the hash of a job that was already enqueued is kept for its worker.
_DISARM = "if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then redis.call('DEL', KEYS[2]) end"

_prefixes: set[bytes] = set()


class Timer(NamedTuple):
    """A function to be called at a second, once, however often the timer is armed.

    id: begins with a feature's prefix; letters, digits, - and _ only (RQ's rule). at: seconds since the epoch.
    queue: the one it is put in when it is due.
    """

    id: str
    at: int
    function: Callable[..., object]
    args: tuple[Any, ...]
    queue: str = TIMERS_QUEUE


class Timers:
    """A feature's timers: at most one for each second of the clock, which means "do what is due by now".

    prefix: begins the ids, such as `session-timer-`; the scheduler enqueues what has a known prefix, and leaves the
    rest of the sorted set alone.
    """

    def __init__(self, prefix: str, queue: str = TIMERS_QUEUE) -> None:
        self.prefix = prefix
        self._queue = queue
        self._function: Callable[[int], None] | None = None
        _prefixes.add(prefix.encode())

    def job(self, function: Callable[[int], None]) -> Callable[[int], None]:
        """Make `function` the job that the timers run, with their second as its argument.

        A decorator, because that job imports the service that arms the timers. `create_app` imports the job.
        """
        self._function = job(function)
        return self._function

    def at(self, second: int) -> Timer:
        """Return the timer of a second since the epoch. Raises RuntimeError when the timers have no job."""
        return self._timer(str(second), second, second)

    def second_try(self, second: int, at: int) -> Timer:
        """Return a timer that runs the job of `second` again, at a later one.

        It has another id: when a job ends, RQ deletes the hash of its id.
        """
        return self._timer(f"{second}-at-{at}", at, second)

    def _timer(self, name: str, at: int, second: int) -> Timer:
        if self._function is None:
            raise RuntimeError(f"no job is imported for the timers {self.prefix}*")
        return Timer(f"{self.prefix}{name}", at, self._function, (second,), self._queue)


def is_timer(job_id: bytes) -> bool:
    """Return whether an entry of the scheduler's sorted set is a timer of ours, by its prefix."""
    return job_id.startswith(tuple(_prefixes))


def arm_timer(pipeline: Pipeline, timer: Timer) -> None:
    """Add the timer to the pipeline; arming it again changes nothing."""
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    job = Job.create(
        timer.function,
        timer.args,
        id=timer.id,
        connection=pipeline,
        origin=timer.queue,
        status=JobStatus.SCHEDULED,
        description=timer.id,
        timeout=JOB_TIMEOUT_SECONDS,
        ttl=QUEUED_SECONDS,
        result_ttl=0,
        failure_ttl=FAILURE_SECONDS,
        meta={"request_id": request_id} if request_id else None,
    )
    job.save(pipeline=pipeline)  # before the entry: the scheduler drops one that has no job
    pipeline.zadd(SCHEDULED, {timer.id: timer.at})


def disarm_timer(pipeline: Pipeline, timer_id: str) -> None:
    """Add the removal of the timer to the pipeline; one that is not armed, or was enqueued already, is left alone."""
    pipeline.eval(_DISARM, 2, SCHEDULED, Job.key_for(timer_id), timer_id)


def armed_timers(redis: Redis, prefix: str) -> set[str]:
    """Return the ids of the armed timers that start with `prefix` and whose job exists. Raises RedisError."""
    scheduled = cast("list[bytes]", redis.zrange(SCHEDULED, 0, -1))
    ids = [raw.decode() for raw in scheduled if raw.startswith(prefix.encode())]
    armed: set[str] = set()
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        pipeline = redis.pipeline(transaction=False)
        for timer_id in chunk:
            pipeline.exists(Job.key_for(timer_id))
        armed.update(timer_id for timer_id, exists in zip(chunk, pipeline.execute(), strict=True) if exists)
    return armed


def reconcile_soon(redis: Redis) -> None:
    """Let the reconciliations run at once, instead of at their next time. Raises RedisError."""
    redis.zadd(SCHEDULED, dict.fromkeys((MATCHING, RECONCILIATION), time.time()), xx=True)


def count_armed(redis: Redis) -> int:
    """Return how many timers and periodic jobs the scheduler holds. Raises RedisError."""
    return cast("int", redis.zcard(SCHEDULED))
