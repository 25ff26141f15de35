"""What is broken, and healed again. Each is a context: the fault lasts as long as the context does."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from redis import Redis
from rq.job import Job

from benchmarks.chaos.observers import SCHEDULED
from benchmarks.chaos.stack import Stack
from dev.embedded import free_port

SKEW_SECONDS = 90.0
TIMERS_QUEUE = "after-hours-timers"
GONE = "afterhours_service.sessions.jobs.a_job_of_the_previous_release"


class Fault(NamedTuple):
    """A fault and what is promised under it.

    lasts: whether it goes on until it is healed. may_double: whether an expiry may be published twice.
    """

    name: str
    inject: Callable[[Stack], AbstractContextManager[None]]
    lasts: bool = True
    may_double: bool = False


@contextmanager
def nothing(_stack: Stack) -> Iterator[None]:
    """Break nothing."""
    yield


@contextmanager
def workers_killed(stack: Stack) -> Iterator[None]:
    """Kill both workers in the middle of a batch: before its commit, and then between its commit and its events."""
    with _batch_held(stack):
        stack.kill("worker")
    time.sleep(4)
    with ExitStack() as redis:
        with _batch_held(stack):
            _pause(stack)
            redis.callback(_resume, stack)
        time.sleep(0.1)
        stack.kill("worker")
    yield


@contextmanager
def scheduler_killed(stack: Stack) -> Iterator[None]:
    """Kill the scheduler that is active."""
    stack.active_scheduler().kill()
    yield


@contextmanager
def both_killed(stack: Stack) -> Iterator[None]:
    """Kill both workers in the middle of a batch, and both schedulers."""
    with _batch_held(stack):
        stack.kill("worker")
        stack.kill("scheduler")
    yield


@contextmanager
def redis_stopped(stack: Stack) -> Iterator[None]:
    """Stop Redis; it comes back with what it held."""
    stack.valkey.stop()
    yield
    stack.valkey.start()


@contextmanager
def redis_paused(stack: Stack) -> Iterator[None]:
    """Let Redis accept connections and never answer."""
    _pause(stack)
    yield
    _resume(stack)


@contextmanager
def redis_emptied(stack: Stack) -> Iterator[None]:
    """Restart Redis without anything in it."""
    stack.valkey.stop()
    for path in stack.redis_folder.rglob("*"):
        if path.is_file():
            path.unlink()
    stack.valkey.start()
    yield


@contextmanager
def redis_full(stack: Stack) -> Iterator[None]:
    """Fill Redis up to its maxmemory: it refuses every write."""
    with stack.redis() as redis:
        redis.config_set("maxmemory", "1mb")
    yield
    with stack.redis() as redis:
        redis.config_set("maxmemory", "0")


@contextmanager
def redis_moved(stack: Stack) -> Iterator[None]:
    """Promote a replica, and move the name to it; the old primary lives on as its replica. Then move back."""
    ports = free_port(), free_port()
    old_url, new_url = stack.valkey.value[0], stack.second_redis(ports[1])
    new_path = Path(urlsplit(new_url).path)
    with Redis.from_url(old_url) as old, Redis.from_url(new_url) as new:
        old.config_set("bind", "127.0.0.1")
        old.config_set("port", ports[0])
        _follow(new, ports[0])
        new.replicaof("NO", "ONE")
        stack.name_redis(new_path)
        _follow(old, ports[1])
        _send_subscribers_away(old)
        yield
        old.replicaof("NO", "ONE")
        stack.name_redis()
        _follow(new, ports[0])
        _send_subscribers_away(new)


@contextmanager
def postgres_read_only(stack: Stack) -> Iterator[None]:
    """Let every new connection to PostgreSQL be read-only, as after a failover, and close those that are open."""
    stack.query("ALTER DATABASE app SET default_transaction_read_only = on")
    _terminate_connections(stack)
    yield
    stack.query("BEGIN READ WRITE; ALTER DATABASE app RESET default_transaction_read_only; COMMIT")


@contextmanager
def postgres_restarted(stack: Stack) -> Iterator[None]:
    """Stop PostgreSQL in order, and start it again."""
    stack.postgres.stop()
    yield
    stack.postgres.start()


@contextmanager
def postgres_crashed(stack: Stack) -> Iterator[None]:
    """Let PostgreSQL die without a word, and recover from its log."""
    pid = int((stack.postgres_folder / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGQUIT)
    stack.postgres.stop()
    yield
    stack.postgres.start()


@contextmanager
def connections_terminated(stack: Stack) -> Iterator[None]:
    """Terminate the service's connections to PostgreSQL, three times within a second."""
    for _ in range(3):
        _terminate_connections(stack)
        time.sleep(0.3)
    yield


@contextmanager
def api_process_killed(stack: Stack) -> Iterator[None]:
    """Kill one of the API's processes."""
    stack.kill_api_worker()
    yield


@contextmanager
def gateway_killed(stack: Stack) -> Iterator[None]:
    """Kill the live gateway; another one takes its place."""
    stack.kill("live")
    yield


@contextmanager
def corrupt_jobs(stack: Stack) -> Iterator[None]:
    """Plant jobs that cannot be read, both scheduled and waiting in the queue: garbage, no hash at all, no key."""
    with stack.redis() as redis:
        for place in ("scheduled", "queued"):
            redis.hset(f"rq:job:garbage-{place}", mapping={"data": b"\x80garbage", "created_at": "yesterday"})
            redis.set(f"rq:job:string-{place}", "not a hash")
        for job in ("garbage", "string", "nothing"):
            redis.zadd(SCHEDULED, {f"{job}-scheduled": 0})
            redis.lpush(f"rq:queue:{TIMERS_QUEUE}", f"{job}-queued")
    yield


@contextmanager
def old_jobs(stack: Stack) -> Iterator[None]:
    """Plant jobs whose function this release no longer has, both scheduled and waiting in the queue."""
    with stack.redis() as redis:
        for place in ("scheduled", "queued"):
            Job.create(GONE, args=(1,), connection=redis, id=f"gone-{place}", origin=TIMERS_QUEUE, timeout=30).save()
        redis.zadd(SCHEDULED, {"gone-scheduled": 0})
        redis.lpush(f"rq:queue:{TIMERS_QUEUE}", "gone-queued")
    yield


@contextmanager
def clock_ahead(stack: Stack) -> Iterator[None]:
    """Let the service's clock jump ahead of the database's, and back."""
    with _skewed(stack, SKEW_SECONDS):
        yield


@contextmanager
def clock_behind(stack: Stack) -> Iterator[None]:
    """Let the service's clock jump behind the database's, and back."""
    with _skewed(stack, -SKEW_SECONDS):
        yield


@contextmanager
def together(stack: Stack) -> Iterator[None]:
    """Do nearly all of it, one upon the other."""
    with ExitStack() as faults:
        for inject in (
            clock_ahead,
            corrupt_jobs,
            old_jobs,
            both_killed,
            api_process_killed,
            connections_terminated,
            redis_full,
            redis_paused,
            postgres_crashed,
            api_process_killed,
        ):
            faults.enter_context(inject(stack))
            time.sleep(0.5)
        yield
    with redis_emptied(stack):
        pass


FAULTS: tuple[Fault, ...] = (
    Fault("none", nothing, lasts=False),
    Fault("workers killed in a batch", workers_killed, lasts=False, may_double=True),
    Fault("active scheduler killed", scheduler_killed, lasts=False),
    Fault("workers and schedulers killed", both_killed, lasts=False, may_double=True),
    Fault("Redis stopped", redis_stopped, may_double=True),
    Fault("Redis paused", redis_paused, may_double=True),
    Fault("Redis restarted empty", redis_emptied, lasts=False, may_double=True),
    Fault("Redis full", redis_full, may_double=True),
    Fault("Redis moved, old primary alive", redis_moved, may_double=True),
    Fault("PostgreSQL read-only", postgres_read_only, may_double=True),
    Fault("PostgreSQL restarted", postgres_restarted, may_double=True),
    Fault("PostgreSQL crashed", postgres_crashed, may_double=True),
    Fault("PostgreSQL connections terminated", connections_terminated, lasts=False, may_double=True),
    Fault("API process killed", api_process_killed, lasts=False, may_double=True),
    Fault("gateway killed", gateway_killed, lasts=False),
    Fault("corrupt jobs", corrupt_jobs, lasts=False),
    Fault("jobs of another release", old_jobs, lasts=False),
    Fault("clock 90 s ahead", clock_ahead),
    Fault("clock 90 s behind", clock_behind),
    Fault("together", together, may_double=True),
)


@contextmanager
def _batch_held(stack: Stack) -> Iterator[None]:
    """Hold a worker in the statement that ends what is due, until the context ends."""
    with contextlib.closing(stack.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE after_hours_sessions IN SHARE MODE")
        end = time.monotonic() + 1.5  # the service's own lock_timeout is 2 s
        while time.monotonic() < end and not _waiters(cursor):
            time.sleep(0.01)
        yield


def _waiters(cursor: Any) -> int:
    cursor.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%SKIP LOCKED%'"
    )
    [(count,)] = cursor.fetchall()
    waiting: int = count
    return waiting


def _terminate_connections(stack: Stack) -> None:
    stack.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'after-hours'")


def _send_subscribers_away(demoted: Redis) -> None:
    """Disconnect who listens to a demoted primary, as Sentinel does: until it is in sync, it hears of no event."""
    demoted.client_kill_filter(_type="pubsub")


def _follow(replica: Redis, port: int) -> None:
    """Make a server the replica of the one at `port`, and wait until it holds the same. Raises TimeoutError."""
    replica.replicaof("127.0.0.1", port)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        state = cast("dict[str, Any]", replica.info("replication"))
        if state["master_link_status"] == "up":
            return
        time.sleep(0.02)
    raise TimeoutError("the replica does not follow its primary")


def _pause(stack: Stack) -> None:
    os.kill(stack.valkey.value[1], signal.SIGSTOP)


def _resume(stack: Stack) -> None:
    os.kill(stack.valkey.value[1], signal.SIGCONT)


@contextmanager
def _skewed(stack: Stack, seconds: float) -> Iterator[None]:
    stack.shift_clock(seconds)
    yield
    stack.shift_clock(0)
