"""What worker and scheduler have in common: how they start, and how they stop at a signal."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable

from redis import Redis
from rq import Worker
from rq_scheduler import Scheduler as RqScheduler
from sqlalchemy import make_url

from afterhours_service.config import Settings
from afterhours_service.jobs.jobs import QUEUES
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

ENVIRONMENT = "after-hours:environment"  # a digest of the DATABASE_URL last used with this Redis

STOP_SECONDS = 8  # how long the current job may take to finish after SIGTERM


def begin(settings: Settings, redis: Redis, stop: Callable[[], None]) -> None:
    """Do what each process does first: handle signals, serve metrics, warn of other users of the Redis database.

    stop: called at SIGTERM and SIGINT. Raises what it raises.
    """
    on_stop_signal(stop)
    metrics.serve(settings.metrics_host, settings.metrics_port)
    warn_of_neighbours(redis, settings.database_url)


def warn_of_neighbours(redis: Redis, database_url: str) -> None:
    """Log a warning for each other user of this Redis database that can be seen. Never raises."""
    instances = f"{RqScheduler.redis_scheduler_namespace_prefix}*"
    try:
        if redis.exists(RqScheduler.scheduler_lock_key) or any(redis.scan_iter(instances, count=10_000)):
            logger.warning("another application's rq-scheduler uses this Redis database: it takes our timers too")
        for worker in Worker.all(connection=redis):
            if others := sorted(set(worker.queue_names()) - set(QUEUES)):
                logger.warning("another application's worker uses this Redis database", queues=",".join(others))
        url = make_url(database_url)
        place = f"{url.host or url.query.get('host')}:{url.port}/{url.database}"
        ours = hashlib.sha256(place.encode()).hexdigest()[:16].encode()
        if redis.getset(ENVIRONMENT, ours) not in {None, ours}:
            logger.warning("this Redis database was used with another DATABASE_URL before")
    except Exception as error:  # noqa: BLE001 - another application's keys may hold anything
        logger.info("cannot check for other users of Redis", error=type(error).__name__)


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Call `stop` at SIGTERM and SIGINT, and exit STOP_SECONDS later if the process is still running.

    The database rolls back an interrupted transaction, and the reconciliation does its work again.
    """
    signals = (signal.SIGTERM, signal.SIGINT)
    # Python runs handlers in the main thread, which may be blocked in C code; it writes to the wakeup pipe at once.
    arrivals, arrived = os.pipe()
    os.set_blocking(arrived, False)
    signal.set_wakeup_fd(arrived, warn_on_full_buffer=False)

    def watch() -> None:
        while os.read(arrivals, 1)[0] not in signals:
            pass
        time.sleep(STOP_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, name="stop-watch", daemon=True).start()
    for number in signals:
        signal.signal(number, lambda _signal, _frame: stop())
