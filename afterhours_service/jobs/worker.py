"""The worker's loop, and how a process ends at a signal."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from flask import Flask
from redis import Redis
from redis.exceptions import (
    RedisError,
)
from rq import SimpleWorker
from rq.exceptions import StopRequested
from rq.worker import WorkerStatus

from afterhours_service.config import Settings
from afterhours_service.jobs.jobs import QUEUES
from afterhours_service.stores.redis import RECONNECT_SECONDS, WORKER_TIMEOUT_SECONDS, connect, wait_as_workers_do
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

STOP_SECONDS = 8  # how long what is in flight may take when the process is to stop

WORKER_TTL_SECONDS = 17  # RQ blocks for fifteen seconds less, then tells Redis that the worker lives

MAINTENANCE_SECONDS = 30  # how often a worker looks for the jobs of dead ones


class Worker(SimpleWorker):
    """RQ's, without the fork, asking a Redis that is away each second, and told by signals only."""

    max_connection_wait_time = RECONNECT_SECONDS

    @property
    def connection_timeout(self) -> int:
        """How long a Redis that is connected, and silent, is waited for."""
        return int(WORKER_TIMEOUT_SECONDS)

    def subscribe(self) -> None:
        """Take no commands from Redis: their thread and connection would be left behind by an outage."""

    def _install_signal_handlers(self) -> None:
        """Leave in place those of `run_worker`, which outlive this worker."""

    def stop(self) -> None:
        """End the loop: after the job that is running, or at once.

        Raises StopRequested when there is none.
        """
        self._stop_requested = True
        if self.get_state() != WorkerStatus.BUSY:
            raise StopRequested

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        """Tell Redis that the worker lives, unless it is to stop and somebody swallowed the exception that said so."""
        if self._stop_requested:
            self.stop()
        super().heartbeat(*args, **kwargs)


def run_worker(
    app: Flask, queues: Sequence[str] = QUEUES, at_start: Callable[[Redis, str], None] = lambda _redis, _url: None
) -> None:
    """Work until SIGTERM or SIGINT; wait for a Redis that is away, and go on when it is back.

    Runs the jobs in this process: a timer costs no fork. Each job has a time limit, and its statements have theirs.
    at_start: called once, with Redis and DATABASE_URL, before the first job.
    """
    worker: Worker | None = None
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        if worker is None:
            raise StopRequested
        worker.stop()

    settings: Settings = app.extensions["after_hours_settings"]
    metrics.serve(settings.metrics_host, settings.metrics_port)
    wait_as_workers_do(app)
    connection = connect(settings, WORKER_TIMEOUT_SECONDS)
    with suppress(StopRequested):
        on_stop_signal(stop)
        at_start(connection, settings.database_url)
        while not stopped:
            try:
                worker = Worker(
                    queues,
                    connection=connection,
                    maintenance_interval=MAINTENANCE_SECONDS,
                    worker_ttl=WORKER_TTL_SECONDS,
                    log_job_description=False,
                )
                with app.app_context():
                    worker.work()
            except StopRequested:
                return
            except RedisError as error:
                logger.warning("redis away", error=type(error).__name__)
            except Exception:
                logger.exception("worker failed")  # and the next one takes over
            worker = None
            connection.connection_pool.disconnect()  # RQ logs errors of its own: whatever it was, begin anew
            time.sleep(0 if stopped else RECONNECT_SECONDS)


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Have `stop` called at SIGTERM and SIGINT; whatever still hangs STOP_SECONDS later is cut short.

    The database rolls back what is cut short, and the reconciliation makes it good.
    """
    signals = (signal.SIGTERM, signal.SIGINT)
    # Python calls a handler when its main thread comes to it; what hangs in C never does. The pipe knows at once.
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
