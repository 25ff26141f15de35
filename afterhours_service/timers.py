"""Timers on rq-scheduler: arm and disarm in the trip after a commit, periodic jobs, and the scheduler's loop.

The mechanism only: which seconds a session needs is in `sessions/deadlines.py`. No other module knows rq-scheduler.
"""

import functools
import hashlib
import math
import pickle
import pickletools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import structlog
from crontab import CronTab
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import Worker
from rq.job import Job, JobStatus
from rq_scheduler import Scheduler as RqScheduler
from sqlalchemy import make_url

from afterhours_service import metrics
from afterhours_service.log import get_logger
from afterhours_service.queue import (
    FAILURE_SECONDS,
    JOB_TIMEOUT_SECONDS,
    MAINTENANCE_QUEUE,
    QUEUES,
    RECONNECT_SECONDS,
    TIMERS_QUEUE,
    on_stop_signal,
)

logger = get_logger(__name__)

SCHEDULED: str = RqScheduler.scheduled_jobs_key
LEASE = "after-hours:scheduler"  # not rq-scheduler's lock: another application's scheduler needs that for its own jobs
ENVIRONMENT = "after-hours:environment"
PREFIX = "session-timer-"  # of the ids of all timers: what has another is not ours
POLL_SECONDS = 0.05
CLOCK_SECONDS = 5  # how often the database's clock is looked at
LOOK_SECONDS = 1  # how often the lease is renewed, and the periodic jobs are looked for
LEASE_SECONDS = 5  # a scheduler that was killed is replaced within this
RETRY_SECONDS = 5  # after which a periodic job that failed comes again
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


def active_scheduler(redis: Redis) -> str | None:
    """Return the name of the scheduler that holds the lease."""
    name = cast("bytes | None", redis.get(LEASE))
    return name.decode() if name else None


class Periodic(NamedTuple):
    """A job that comes again: every `seconds`, first at once; or at the times of a cron line, in UTC."""

    id: str
    function: str
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
        return job if found == (periodic.function, _periodic_meta(periodic), FAILURE_SECONDS) else None

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


def _periodic_meta(periodic: Periodic) -> dict[str, Any]:
    if periodic.cron:
        return {"cron_string": periodic.cron}
    return {"interval": periodic.seconds}
