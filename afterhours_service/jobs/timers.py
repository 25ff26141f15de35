"""Timers on rq-scheduler: arm and disarm in the pipeline after a commit.

The mechanism only: which seconds a session needs is in `sessions/deadlines.py`.
"""

import functools
import pickle
import pickletools
from typing import Any, NamedTuple, cast

import structlog
from redis import Redis
from redis.client import Pipeline
from rq.job import Job, JobStatus
from rq_scheduler import Scheduler as RqScheduler

from afterhours_service.jobs.jobs import FAILURE_SECONDS, JOB_TIMEOUT_SECONDS, TIMERS_QUEUE
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

SCHEDULED: str = RqScheduler.scheduled_jobs_key

PREFIX = "session-timer-"  # of the ids of all timers: what has another is not ours

QUEUED_SECONDS = 120  # a timer that nobody worked off for so long is left to the reconciliation

CHUNK = 1000

# Two keys, the scheduler's and the job's; the timer's id and second, then fields and values of the job. The description
# is for a worker on a terminal, which cannot do without.
_ARM = f"""
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], 'status', '{JobStatus.SCHEDULED.value}', 'origin', '{TIMERS_QUEUE}',
    'description', ARGV[1], 'timeout', {JOB_TIMEOUT_SECONDS}, 'ttl', {QUEUED_SECONDS}, 'result_ttl', 0,
    'failure_ttl', {FAILURE_SECONDS}, unpack(ARGV, 3))
"""

# The job's hash goes with the entry; without one, a worker is at the job, or is about to be.
_DISARM = "if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then redis.call('DEL', KEYS[2]) end"


class Timer(NamedTuple):
    """A function to be called at a second, once however often it is armed.

    id: begins with PREFIX; letters, digits, - and _ only (RQ's rule). at: seconds since the epoch. function: its dotted
    path.
    """

    id: str
    at: int
    function: str
    args: tuple[Any, ...]


def arm_timer(pipeline: Pipeline, timer: Timer) -> None:
    """Put the timer into the trip; arming it again changes nothing.

    Writes the job as RQ's `Job.save` does, but for what RQ makes up for when it reads it: a tenth of the CPU, and a
    third of the memory, as Redis keeps a hash of short values in one piece.
    """
    fields = {"data": _call(timer.function, timer.args)}
    if request_id := structlog.contextvars.get_contextvars().get("request_id"):
        fields["meta"] = pickle.dumps({"request_id": request_id}, protocol=3)
    given = [value for field in fields.items() for value in field]
    pipeline.eval(_ARM, 2, SCHEDULED, Job.key_for(timer.id), timer.id, timer.at, *given)


@functools.lru_cache(maxsize=1000)  # sessions that begin together end together
def _call(function: str, args: tuple[Any, ...]) -> bytes:
    """Return a call as RQ reads it; one of `session_timer` has the 64 bytes that are allowed in a hash in one piece."""
    return pickletools.optimize(pickle.dumps((function, None, args, {}), protocol=3))


def disarm_timer(pipeline: Pipeline, timer_id: str) -> None:
    """Put the removal of the timer into the trip; one that is not armed, or handed over already, is left alone."""
    pipeline.eval(_DISARM, 2, SCHEDULED, Job.key_for(timer_id), timer_id)


def armed_timers(redis: Redis, prefix: str) -> set[str]:
    """Return the ids of the armed timers that start with `prefix`, and whose job is there to be run."""
    scheduled = cast("list[bytes]", redis.zrange(SCHEDULED, 0, -1))
    ids = [raw.decode() for raw in scheduled if raw.startswith(prefix.encode())]
    whole: set[str] = set()
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        pipeline = redis.pipeline(transaction=False)
        for timer_id in chunk:
            pipeline.exists(Job.key_for(timer_id))
        whole.update(timer_id for timer_id, there in zip(chunk, pipeline.execute(), strict=True) if there)
    return whole


def count_armed(redis: Redis) -> int:
    """Return how many timers and periodic jobs the scheduler holds."""
    return cast("int", redis.zcard(SCHEDULED))
