"""The scheduler: enqueues timers when they are due, and periodic jobs at their intervals."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

import psycopg2
from crontab import CronTab
from flask import Flask
from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job, JobStatus
from rq_scheduler import Scheduler as RqScheduler
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.config import Settings
from afterhours_service.jobs import process
from afterhours_service.jobs.jobs import FAILURE_SECONDS, JOB_TIMEOUT_SECONDS, MAINTENANCE_QUEUE, QUEUES
from afterhours_service.jobs.timers import CHUNK, SCHEDULED, is_timer
from afterhours_service.stores.database import connect_args
from afterhours_service.stores.redis import RECONNECT_SECONDS, WORKER_TIMEOUT_SECONDS, connect
from afterhours_service.stores.servers import ask, find_primary
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

LEASE = "after-hours:scheduler"  # not rq-scheduler's lock: another application's scheduler needs that for its own jobs

POLL_SECONDS = 0.05

CLOCK_SECONDS = 5  # how often to read the database's clock

WHOLE_LOOK_SECONDS = 5  # how often others' entries, which are passed over, are looked at again

LOOK_SECONDS = 1  # how often the lease is renewed and the periodic jobs are checked

LEASE_SECONDS = 5  # a scheduler that was killed is replaced within this

RETRY_SECONDS = 5  # a periodic job that failed is retried after this


def active_scheduler(redis: Redis) -> str | None:
    """Return the name of the scheduler that holds the lease. Raises RedisError."""
    name = cast("bytes | None", redis.get(LEASE))
    return name.decode() if name else None


class Periodic(NamedTuple):
    """A periodic job: every `seconds`, first at once; or at the times of a cron expression, in UTC."""

    id: str
    function: Callable[..., object]
    seconds: int | None = None
    cron: str | None = None
    queue: str = MAINTENANCE_QUEUE


class Scheduler:
    """Enqueues what is due, in rq-scheduler's format, with a loop of its own (docs/decisions/0003).

    The loop survives an outage of Redis and entries that cannot be read. Of several schedulers the one that holds the
    lease is active. Its time is the database's, by which sessions end.

    seconds_behind: returns how far this clock is behind the database's, or None if nothing new is known.
    """

    def __init__(
        self,
        connection: Redis,
        periodic: tuple[Periodic, ...],
        seconds_behind: Callable[[], float | None] = lambda: 0.0,
    ) -> None:
        self.connection = connection
        self.periodic = periodic
        self._rq_scheduler = RqScheduler(queue_name=MAINTENANCE_QUEUE, connection=connection)
        self.name: str = self._rq_scheduler.name
        self._periodic_ids = {job.id.encode() for job in periodic}
        self._seconds_behind = seconds_behind
        self._behind = 0.0
        self._next_whole_look = 0.0  # time.monotonic()
        self._next_lease = 0.0  # time.monotonic()
        self._next_look = 0.0  # time.monotonic()
        self._stopped = False
        self._catch_up = True  # at the start and after an outage: run the interval jobs at once
        self._since = 0.0  # all entries due before this time belong to others

    def run(self) -> None:
        """Enqueue due jobs until `stop` is called, whatever happens to Redis meanwhile."""
        logger.info("scheduler started", name=self.name)
        away = False
        while not self._stopped:
            try:
                self.tick()
                away = False
            except Exception as error:
                if not isinstance(error, RedisError):
                    logger.exception("round failed")
                elif not away:
                    logger.warning("redis away", error=type(error).__name__)
                self._catch_up = away = True
                self.connection.connection_pool.disconnect()  # the host name may resolve to another Redis by now
            if not self._stopped:
                time.sleep(RECONNECT_SECONDS if away else POLL_SECONDS)
        if not away:
            self.release_lease()
        logger.info("scheduler stopped", name=self.name)

    def stop(self) -> None:
        """End the loop after the current round."""
        self._stopped = True

    def tick(self) -> None:
        """Do one round, if this scheduler is active: enqueue what is due, renew the lease, check the periodic jobs."""
        if time.monotonic() >= self._next_lease:
            active = self.acquire_lease()
            metrics.SCHEDULER_ACTIVE.set(active)
            if not active:
                self._catch_up = True
                return
            self._next_lease = time.monotonic() + LOOK_SECONDS
        if self._catch_up or time.monotonic() >= self._next_whole_look:
            self._since = 0.0
            self._next_whole_look = time.monotonic() + WHOLE_LOOK_SECONDS
        if self._catch_up or time.monotonic() >= self._next_look:
            self.read_clock()
            self.register_periodic(at_once=self._catch_up)
            self._catch_up, self._next_look = False, time.monotonic() + LOOK_SECONDS
        self.enqueue_due()

    def now(self) -> float:
        """Return the database's time, as far as it is known, in seconds since the epoch."""
        return time.time() + self._behind

    def read_clock(self) -> None:
        """Read how far this clock is behind the database's; keep the last value while the database is away."""
        behind = self._seconds_behind()
        if behind is not None:
            self._behind = behind
            if abs(behind) > 1:
                logger.warning("this clock differs from the database's", seconds_behind=round(behind, 1))

    def acquire_lease(self) -> bool:
        """Take or renew the lease; false when another scheduler holds it."""
        taken = self.connection.set(LEASE, self.name, ex=LEASE_SECONDS, nx=True)
        if not taken and active_scheduler(self.connection) == self.name:
            taken = self.connection.expire(LEASE, LEASE_SECONDS)
        return bool(taken)

    def release_lease(self) -> None:
        """Delete the lease if this scheduler holds it, so that another takes over at once."""
        try:
            if active_scheduler(self.connection) == self.name:
                self.connection.delete(LEASE)
        except RedisError:
            logger.info("lease not released: it expires by itself")

    def register_periodic(self, *, at_once: bool = False) -> None:
        """Register the periodic jobs that are missing or have changed; the others keep their next time.

        One that failed, or whose worker died, is retried in RETRY_SECONDS. RQ's own Retry would not do: its count is
        reset only with the job, and a periodic job is never deleted. at_once: run those that have an interval now.
        """
        for periodic in self.periodic:
            due = cast("float | None", self.connection.zscore(SCHEDULED, periodic.id))
            job = self._registered(periodic)
            if due is None or job is None:
                self._register(periodic)
            elif at_once and periodic.seconds:
                self.connection.zadd(SCHEDULED, {periodic.id: self.now()})
            elif due > (soon := self.now() + RETRY_SECONDS) and self._has_failed(job):
                self.connection.zadd(SCHEDULED, {periodic.id: soon})

    def _registered(self, periodic: Periodic) -> Job | None:
        """Return the job as Redis has it; None when it is missing, cannot be read, or differs from `periodic`."""
        try:
            job = Job.fetch(periodic.id, connection=self.connection)
            found = job.func_name, job.meta, job.failure_ttl, job.origin
        except Exception as error:
            if _is_redis_failing(error):
                raise
            return None
        return job if found == (_name(periodic.function), _meta(periodic), FAILURE_SECONDS, periodic.queue) else None

    def _register(self, periodic: Periodic) -> None:
        self.connection.delete(Job.key_for(periodic.id))  # it may be of any type
        at = self._next_cron(periodic.cron) if periodic.cron else self.now()
        job = self._rq_scheduler.schedule(
            datetime.fromtimestamp(at, UTC),
            periodic.function,
            id=periodic.id,
            description=periodic.id,
            timeout=JOB_TIMEOUT_SECONDS,
            result_ttl=-1,
            meta=_meta(periodic),
            queue_name=periodic.queue,
        )
        job.failure_ttl = FAILURE_SECONDS  # rq-scheduler has no parameter for it, and RQ's default is a year
        job.save()
        logger.info("periodic job registered", id=periodic.id)

    def _has_failed(self, job: Job) -> bool:
        """Return whether the job failed, or has the status `queued` without being in its queue."""
        status = job.get_status(refresh=False)
        return status == JobStatus.FAILED or (status == JobStatus.QUEUED and not self._is_queued(job))

    def _is_queued(self, job: Job) -> bool:
        return self.connection.lpos(self._rq_scheduler.get_queue_for_job(job).key, job.id) is not None

    def enqueue_due(self) -> None:
        """Enqueue every due job; drop and log one that cannot be read, and go on with the next.

        Entries of other applications stay, and are skipped in the next rounds, however many there are.
        """
        now, others = self.now(), 0
        while True:
            due = cast(
                "list[bytes]", self.connection.zrangebyscore(SCHEDULED, self._since, now, start=others, num=CHUNK)
            )
            others += sum(not self._enqueue_if_ours(raw) for raw in due)
            if len(due) < CHUNK:
                break
        if others:
            self._since = now

    def _enqueue_if_ours(self, raw: bytes) -> bool:
        """Enqueue a due entry, or drop it; false when it belongs to others."""
        if not is_timer(raw) and raw not in self._periodic_ids:
            return False
        try:
            job = Job.fetch(raw.decode(), connection=self.connection)
            if job.origin and job.origin not in QUEUES:
                return False
            self._enqueue(job)
            metrics.JOBS_ENQUEUED.inc()
        except Exception as error:
            if _is_redis_failing(error):
                raise
            logger.warning("broken job dropped", error=type(error).__name__)
            self.connection.zrem(SCHEDULED, raw)
            self.connection.delete(Job.redis_job_namespace_prefix.encode() + raw)
        return True

    def _enqueue(self, job: Job) -> None:
        """Enqueue the job; schedule the next run of a periodic one, which is not queued twice.

        rq-scheduler's own `enqueue_job` reads cron expressions in the process's time zone, by the process's clock.
        """
        again = self._next(job)
        logger.debug("job due", function=job.func_name)  # an unreadable job raises here, and not in a worker
        if again is None or not self._is_queued(job):
            self._rq_scheduler.get_queue_for_job(job).enqueue_job(job)
        if again is None:
            self._rq_scheduler.cancel(job)
        else:
            self.connection.zadd(SCHEDULED, {job.id: again})

    def _next(self, job: Job) -> float | None:
        """Return when a periodic job is due again, in seconds since the epoch; None for a timer."""
        if cron := job.meta.get("cron_string"):
            return self._next_cron(cron)
        interval = job.meta.get("interval")
        return self.now() + float(interval) if interval else None

    def _next_cron(self, cron: str) -> float:
        now = math.floor(self.now())
        return float(now + CronTab(cron).next(now=now, default_utc=True))


def _is_redis_failing(error: Exception) -> bool:
    """Distinguish a Redis that is away, read-only or full from a job that cannot be read."""
    return isinstance(error, RedisError) and not str(error).startswith("WRONGTYPE")


def _name(function: Callable[..., object]) -> str:
    """Return a function's name as RQ stores it."""
    return f"{function.__module__}.{function.__qualname__}"


def _meta(periodic: Periodic) -> dict[str, Any]:
    """Return the keys by which rq-scheduler, too, knows a periodic job."""
    return {"cron_string": periodic.cron} if periodic.cron else {"interval": periodic.seconds}


def run_scheduler(app: Flask, periodic: tuple[Periodic, ...]) -> None:
    """Enqueue timers and periodic jobs until SIGTERM or SIGINT; wait for a Redis that is away."""
    settings: Settings = app.extensions["after_hours_settings"]
    engine = create_engine(
        settings.database_url,
        poolclass=NullPool,
        connect_args=connect_args(settings.database_url, "statement_timeout=1s", connect_timeout=2),  # within the lease
    )
    find_primary(engine)
    connection = connect(settings, WORKER_TIMEOUT_SECONDS)
    clock = DatabaseClock(engine)
    scheduler = Scheduler(connection, periodic, clock.seconds_behind)
    process.begin(settings, connection, scheduler.stop)
    clock.start()
    scheduler.run()


class DatabaseClock:
    """Reads the database's clock in a thread of its own, so that no timer waits for a database that is silent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._behind: float | None = None

    def start(self) -> None:
        """Read it every CLOCK_SECONDS, until the process ends; for the first time at once, if the database answers."""
        read = threading.Event()
        threading.Thread(target=self._read_on, args=(read,), name="database-clock", daemon=True).start()
        read.wait(CLOCK_SECONDS)

    def seconds_behind(self) -> float | None:
        """Return how far this machine's clock is behind the database's; None if it was not read since the last call."""
        behind, self._behind = self._behind, None
        return behind

    def _read_on(self, read: threading.Event) -> None:
        while True:
            self._behind = seconds_behind(self._engine)
            read.set()
            time.sleep(CLOCK_SECONDS)


def seconds_behind(engine: Engine) -> float | None:
    """Return how far this machine's clock is behind the database's, in seconds; None when the database is away.

    This clock is read after the answer arrives: the result is too small rather than too large, and no timer is early.
    """
    try:
        with closing(engine.raw_connection()) as connection:
            theirs = float(ask(connection.dbapi_connection, "SELECT extract(epoch FROM clock_timestamp())"))
            return theirs - time.time()
    except (SQLAlchemyError, psycopg2.Error) as error:
        logger.warning("database away", error=type(error).__name__)
        return None
