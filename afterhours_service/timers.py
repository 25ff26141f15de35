"""Timers on rq-scheduler: arm and disarm in the trip after a commit, periodic jobs, and the scheduler's loop.

The mechanism only: which seconds a session needs is in `sessions/deadlines.py`. No other module knows rq-scheduler.
"""

import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple, cast

import structlog
from crontab import CronTab
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError, RedisError, TimeoutError  # noqa: A004 - the names that redis-py gave them
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus
from rq_scheduler import Scheduler as RqScheduler

from afterhours_service.log import get_logger
from afterhours_service.queue import (
    FAILURE_SECONDS,
    JOB_TIMEOUT_SECONDS,
    MAINTENANCE_QUEUE,
    RECONNECT_SECONDS,
    TIMERS_QUEUE,
)

logger = get_logger(__name__)

SCHEDULED: str = RqScheduler.scheduled_jobs_key
POLL_SECONDS = 0.2
CLOCK_SECONDS = 5  # how often the database's clock is looked at
LEASE_SECONDS = 5  # a scheduler that was killed is replaced within this
QUEUED_SECONDS = 120  # a timer that nobody worked off for so long is left to the reconciliation
CHUNK = 1000
# The job's hash goes with the entry; without one, a worker is at the job, or is about to be.
_DISARM = "if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then redis.call('DEL', KEYS[2]) end"


class Timer(NamedTuple):
    """A function to be called at a second, once however often it is armed.

    id: letters, digits, - and _ only (RQ's rule). at: seconds since the epoch. function: its dotted path.
    """

    id: str
    at: int
    function: str
    args: tuple[Any, ...]


def arm_timer(pipeline: Pipeline, timer: Timer) -> None:
    """Put the timer into the trip; arming it again changes nothing."""
    job = Job.create(
        timer.function,
        args=timer.args,
        connection=pipeline,
        id=timer.id,
        origin=TIMERS_QUEUE,
        status=JobStatus.SCHEDULED,
        description=timer.id,
        timeout=JOB_TIMEOUT_SECONDS,
        ttl=QUEUED_SECONDS,
        result_ttl=0,
        failure_ttl=FAILURE_SECONDS,
        meta=_meta(),
    )
    job.save(pipeline=pipeline)
    pipeline.zadd(SCHEDULED, {timer.id: timer.at})


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


class Periodic(NamedTuple):
    """A job that comes again: every `seconds`, first at once; or at the times of a cron line, in UTC."""

    id: str
    function: str
    seconds: int | None = None
    cron: str | None = None


class Scheduler(RqScheduler):  # type: ignore[misc]
    """rq-scheduler's, with a loop that outlives Redis, bad entries, and the scheduler beside it.

    Of several schedulers the one that holds the lease is active; the others wait for it to lapse. The time is the
    database's, by which sessions end: `seconds_behind` tells how far this clock is behind it, or None for unknown.
    """

    def __init__(
        self,
        connection: Redis,
        periodic: tuple[Periodic, ...],
        seconds_behind: Callable[[], float | None] = lambda: 0.0,
    ) -> None:
        super().__init__(queue_name=MAINTENANCE_QUEUE, connection=connection, interval=POLL_SECONDS)
        self.periodic = periodic
        self._seconds_behind = seconds_behind
        self._behind = 0.0
        self._next_clock = 0.0  # time.monotonic()
        self._stopped = threading.Event()
        self._catch_up = True  # what was missed before the first round, or while Redis was away, is looked for at once
        self._next_look = 0.0  # time.monotonic()

    def run(self, burst: bool = False) -> None:
        """Hand over due jobs until SIGTERM or SIGINT; `burst` makes one round of it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        logger.info("scheduler started", name=self.name)
        while not self._stopped.is_set():
            pause = POLL_SECONDS
            try:
                self.tick()
            except RedisError as error:
                if not self._catch_up:
                    logger.warning("redis away", error=type(error).__name__)
                self._catch_up, pause = True, RECONNECT_SECONDS
            if burst:
                break
            self._stopped.wait(pause)
        self.remove_lock()
        logger.info("scheduler stopped", name=self.name)

    def now(self) -> float:
        """Return the database's time, in seconds since the epoch, as far as it is known."""
        return time.time() + self._behind

    def look_at_the_clock(self) -> None:
        """Find out how far this clock is behind the database's; while that is away, nothing changes."""
        behind = self._seconds_behind()
        if behind is not None:
            self._behind = behind
            if abs(behind) > 1:
                logger.warning("the clock is not the database's", seconds_behind=round(behind, 1))

    def tick(self) -> None:
        """Do one round, if this scheduler is the active one: periodic jobs each second, due jobs each time."""
        if not self.acquire_lock():
            self._catch_up = True
            return
        if self._catch_up or time.monotonic() >= self._next_clock:
            self.look_at_the_clock()
            self._next_clock = time.monotonic() + CLOCK_SECONDS
        if self._catch_up or time.monotonic() >= self._next_look:
            self.register_periodic(at_once=self._catch_up)
            self._catch_up, self._next_look = False, time.monotonic() + 1
        self.enqueue_jobs()

    def stop(self, _signal: int | None = None, _frame: FrameType | None = None) -> None:
        """End the loop after the round it is in."""
        self._stopped.set()

    def acquire_lock(self) -> bool:
        """Take the lease, or hold on to it; false when another scheduler has it."""
        taken = self.connection.set(self.scheduler_lock_key, self.name, ex=LEASE_SECONDS, nx=True)
        if not taken and self.connection.get(self.scheduler_lock_key) == self.name.encode():
            taken = self.connection.expire(self.scheduler_lock_key, LEASE_SECONDS)
        return bool(taken)

    def remove_lock(self) -> None:
        """Give the lease back, if it is ours, so that another takes over at once."""
        try:
            if self.connection.get(self.scheduler_lock_key) == self.name.encode():
                self.connection.delete(self.scheduler_lock_key)
        except RedisError:
            logger.info("the lease is left to lapse")

    def register_periodic(self, *, at_once: bool = False) -> None:
        """Register the periodic jobs that are missing or have changed; a registered one keeps its time.

        at_once: let those that come every few seconds come now.
        """
        for job in self.periodic:
            score = self.connection.zscore(SCHEDULED, job.id)
            if score is None or (job.cron and self._registered_cron(job.id) != job.cron):
                self._register(job)
            elif at_once and job.seconds:
                self.connection.zadd(SCHEDULED, {job.id: self.now()})

    def _registered_cron(self, job_id: str) -> str | None:
        try:
            cron: str | None = Job.fetch(job_id, connection=self.connection).meta.get("cron_string")
        except Exception:  # noqa: BLE001 - a hash that cannot be read is as good as none
            return None
        return cron

    def _register(self, periodic: Periodic) -> None:
        meta = {"cron_string": periodic.cron} if periodic.cron else {"interval": periodic.seconds}
        job = self._create_job(
            periodic.function,
            id=periodic.id,
            description=periodic.id,
            timeout=JOB_TIMEOUT_SECONDS,
            result_ttl=-1,
            meta=meta,
        )
        self.connection.zadd(SCHEDULED, {job.id: self._next(job) if periodic.cron else self.now()})
        logger.info("periodic job registered", id=job.id)

    def enqueue_jobs(self) -> None:
        """Hand every due job to its queue; one that cannot be read is dropped and logged."""
        for raw in self.connection.zrangebyscore(SCHEDULED, 0, self.now(), start=0, num=CHUNK):
            try:
                job = Job.fetch(raw.decode(), connection=self.connection)
            except NoSuchJobError:
                self.connection.zrem(SCHEDULED, raw)
            except (ConnectionError, TimeoutError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the next one is due too
                logger.warning("unreadable job dropped", error=type(error).__name__)
                self.connection.zrem(SCHEDULED, raw)
                self.connection.delete(Job.redis_job_namespace_prefix.encode() + raw)
            else:
                self.enqueue_job(job)

    def enqueue_job(self, job: Job) -> None:
        """Hand the job over; a periodic one comes again, and isn't put twice into its queue."""
        queue = self.get_queue_for_job(job)
        again = self._next(job)
        if again is None or self.connection.lpos(queue.key, job.id) is None:
            queue.enqueue_job(job)
        if again is None:
            self.connection.zrem(SCHEDULED, job.id)
        else:
            self.connection.zadd(SCHEDULED, {job.id: again})

    def _next(self, job: Job) -> float | None:
        """Return when a periodic job comes again, in seconds since the epoch; cron lines are read in UTC."""
        if cron := job.meta.get("cron_string"):
            now = math.floor(self.now())
            return float(now + CronTab(cron).next(now=now, default_utc=True))
        interval = job.meta.get("interval")
        return self.now() + interval if interval else None


def _meta() -> dict[str, str]:
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    return {"request_id": request_id} if request_id else {}
