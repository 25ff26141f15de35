"""The scheduler: hands due timers over, and sees that periodic jobs come again."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

from crontab import CronTab
from redis import Redis
from redis.exceptions import RedisError
from rq import Worker
from rq.job import Job, JobStatus
from rq_scheduler import Scheduler as RqScheduler
from sqlalchemy import Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.config import Settings
from afterhours_service.jobs.jobs import FAILURE_SECONDS, JOB_TIMEOUT_SECONDS, MAINTENANCE_QUEUE, QUEUES
from afterhours_service.jobs.timers import CHUNK, PREFIX, SCHEDULED
from afterhours_service.jobs.worker import on_stop_signal
from afterhours_service.stores.database import connect_args
from afterhours_service.stores.redis import RECONNECT_SECONDS, WORKER_TIMEOUT_SECONDS, connect
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import configure, get_logger

logger = get_logger(__name__)

LEASE = "after-hours:scheduler"  # not rq-scheduler's lock: another application's scheduler needs that for its own jobs

ENVIRONMENT = "after-hours:environment"

POLL_SECONDS = 0.05

CLOCK_SECONDS = 5  # how often the database's clock is looked at

LOOK_SECONDS = 1  # how often the lease is renewed, and the periodic jobs are looked for

LEASE_SECONDS = 5  # a scheduler that was killed is replaced within this

RETRY_SECONDS = 5  # after which a periodic job that failed comes again


def active_scheduler(redis: Redis) -> str | None:
    """Return the name of the scheduler that holds the lease."""
    name = cast("bytes | None", redis.get(LEASE))
    return name.decode() if name else None


class Periodic(NamedTuple):
    """A job that comes again: every `seconds`, first at once; or at the times of a cron line, in UTC."""

    id: str
    function: Callable[..., None]
    seconds: int | None = None
    cron: str | None = None


def warn_of_neighbours(redis: Redis, database_url: str) -> None:
    """Log a warning for whoever else uses this Redis database, as far as can be seen; never raises."""
    try:
        if redis.exists(RqScheduler.scheduler_lock_key) or _some(
            redis.scan_iter(f"{RqScheduler.redis_scheduler_namespace_prefix}*", count=10_000)
        ):
            logger.warning("another application's rq-scheduler uses this Redis database: it takes our timers too")
        for worker in Worker.all(connection=redis):
            if others := sorted(set(worker.queue_names()) - set(QUEUES)):
                logger.warning("another application's worker uses this Redis database", queues=",".join(others))
        url = make_url(database_url)
        place = f"{url.host or url.query.get('host')}:{url.port}/{url.database}"
        ours = hashlib.sha256(place.encode()).hexdigest()[:16].encode()
        if redis.getset(ENVIRONMENT, ours) not in {None, ours}:
            logger.warning("another After Hours, with another DATABASE_URL, used this Redis database before")
    except Exception as error:  # noqa: BLE001 - what others keep there may be anything
        logger.info("cannot see who else uses Redis", error=type(error).__name__)


def _some(found: Iterable[Any]) -> bool:
    return next(iter(found), None) is not None


class Scheduler(RqScheduler):  # type: ignore[misc]
    """rq-scheduler's, with a loop that outlives Redis, bad entries, and the scheduler beside it.

    Entries of the scheduler's set that are not ours are left alone.

    Of several schedulers the one that holds the lease is active; the others wait for it to lapse. The time is the
    database's, by which sessions end: `seconds_behind` tells how far this clock is behind it, or None for unknown.
    """

    scheduler_lock_key = LEASE

    def __init__(
        self,
        connection: Redis,
        periodic: tuple[Periodic, ...],
        seconds_behind: Callable[[], float | None] = lambda: 0.0,
    ) -> None:
        super().__init__(queue_name=MAINTENANCE_QUEUE, connection=connection, interval=POLL_SECONDS)
        self.periodic = periodic
        self._periodic_ids = {job.id.encode() for job in periodic}
        self._seconds_behind = seconds_behind
        self._behind = 0.0
        self._next_clock = 0.0  # time.monotonic()
        self._next_lease = 0.0  # time.monotonic()
        self._stopped = False
        self._catch_up = True  # what was missed before the first round, or while Redis was away, is looked for at once
        self._next_look = 0.0  # time.monotonic()
        self._since = 0.0  # the entries that were due by then are not ours

    def run(self) -> None:
        """Hand over due jobs until SIGTERM or SIGINT, whatever happens to Redis meanwhile."""
        on_stop_signal(self.stop)
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
                self.connection.connection_pool.disconnect()  # Redis's name may lead to another by now
            if not self._stopped:
                time.sleep(RECONNECT_SECONDS if away else POLL_SECONDS)
        if not away:
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
        """Do a round, if this scheduler is the active one: lease and periodic jobs each second, due jobs each time."""
        if time.monotonic() >= self._next_lease:
            active = self.acquire_lock()
            metrics.SCHEDULER_ACTIVE.set(active)
            if not active:
                self._catch_up = True
                return
            self._next_lease = time.monotonic() + LOOK_SECONDS
        if self._catch_up or time.monotonic() >= self._next_clock:
            self.look_at_the_clock()
            self._since = 0.0
            self._next_clock = time.monotonic() + CLOCK_SECONDS
        if self._catch_up or time.monotonic() >= self._next_look:
            self.register_periodic(at_once=self._catch_up)
            self._catch_up, self._next_look = False, time.monotonic() + LOOK_SECONDS
        self.enqueue_jobs()

    def stop(self) -> None:
        """End the loop after the round it is in."""
        self._stopped = True

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

        One that failed, or that the worker lost who took it, comes again soon.
        at_once: let those that come every few seconds come now.
        """
        for periodic in self.periodic:
            due = self.connection.zscore(SCHEDULED, periodic.id)
            job = self._registered(periodic)
            if due is None or job is None:
                self._register(periodic)
            elif at_once and periodic.seconds:
                self.connection.zadd(SCHEDULED, {periodic.id: self.now()})
            elif due > (soon := self.now() + RETRY_SECONDS) and self._came_to_nothing(job):
                self.connection.zadd(SCHEDULED, {periodic.id: soon})

    def _registered(self, periodic: Periodic) -> Job | None:
        try:
            job = Job.fetch(periodic.id, connection=self.connection)
            found = job.func_name, job.meta, job.failure_ttl
        except Exception as error:
            if _is_redis_failing(error):
                raise
            return None
        return job if found == (_name(periodic.function), _periodic_meta(periodic), FAILURE_SECONDS) else None

    def _came_to_nothing(self, job: Job) -> bool:
        status = job.get_status(refresh=False)
        if status == JobStatus.QUEUED:
            return self.connection.lpos(self.get_queue_for_job(job).key, job.id) is None
        return bool(status == JobStatus.FAILED)

    def _register(self, periodic: Periodic) -> None:
        self.connection.delete(Job.key_for(periodic.id))  # it may be anything
        job = self._create_job(
            periodic.function,
            id=periodic.id,
            description=periodic.id,
            timeout=JOB_TIMEOUT_SECONDS,
            result_ttl=-1,
            meta=_periodic_meta(periodic),
            commit=False,
        )
        job.failure_ttl = FAILURE_SECONDS  # rq-scheduler has no parameter for it, and RQ's default is a year
        job.save()
        self.connection.zadd(SCHEDULED, {job.id: self.now() if periodic.seconds else self._next(job)})
        logger.info("periodic job registered", id=job.id)

    def enqueue_jobs(self) -> None:
        """Hand every due job to its queue; one that is broken is dropped and logged, and holds nothing back.

        What is not ours stays where it is, and is passed over in the next rounds, however much it is.
        """
        now, stay = self.now(), 0
        while True:
            due = self.connection.zrangebyscore(SCHEDULED, self._since, now, start=stay, num=CHUNK)
            stay += sum(not self._hand_over(raw) for raw in due)
            if len(due) < CHUNK:
                break
        if stay:
            self._since = now

    def _hand_over(self, raw: bytes) -> bool:
        """Hand over an entry that is due, or drop it; false when it is not ours."""
        if not raw.startswith(PREFIX.encode()) and raw not in self._periodic_ids:
            return False
        try:
            job = Job.fetch(raw.decode(), connection=self.connection)
            if job.origin and job.origin not in QUEUES:
                return False
            self.enqueue_job(job)
            metrics.HANDED_OVER.inc()
        except Exception as error:
            if _is_redis_failing(error):
                raise
            logger.warning("broken job dropped", error=type(error).__name__)
            self.connection.zrem(SCHEDULED, raw)
            self.connection.delete(Job.redis_job_namespace_prefix.encode() + raw)
        return True

    def enqueue_job(self, job: Job) -> None:
        """Hand the job over; a periodic one comes again, and isn't put twice into its queue."""
        self.log.debug("due: %s", job.func_name)  # raises here, and not in a worker, when it cannot be read
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
        return self.now() + float(interval) if interval else None


def _is_redis_failing(error: Exception) -> bool:
    """Tell a Redis that is away, read-only or full from a job that cannot be read."""
    return isinstance(error, RedisError) and not str(error).startswith("WRONGTYPE")


def _name(function: Callable[..., None]) -> str:
    """Return a function's name as RQ stores it."""
    return f"{function.__module__}.{function.__qualname__}"


def _periodic_meta(periodic: Periodic) -> dict[str, Any]:
    if periodic.cron:
        return {"cron_string": periodic.cron}
    return {"interval": periodic.seconds}


def run_scheduler(settings: Settings, periodic: tuple[Periodic, ...]) -> None:
    """Hand timers over until SIGTERM or SIGINT."""
    configure(settings.log_level)
    metrics.serve(settings.metrics_host, settings.metrics_port)
    engine = create_engine(
        settings.database_url,
        poolclass=NullPool,
        connect_args=connect_args(settings.database_url, "statement_timeout=1s", connect_timeout=2),  # within the lease
    )
    connection = connect(settings, WORKER_TIMEOUT_SECONDS)
    warn_of_neighbours(connection, settings.database_url)
    Scheduler(connection, periodic, lambda: seconds_behind(engine)).run()


def seconds_behind(engine: Engine) -> float | None:
    """Return how far this machine's clock is behind the database's, rounded down; None when that is away.

    Measured after the answer, so that no timer comes too soon.
    """
    try:
        with engine.connect() as connection:
            theirs: float = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())::float")).scalar_one()
            return theirs - time.time()
    except SQLAlchemyError as error:
        logger.warning("database away", error=type(error).__name__)
        return None
