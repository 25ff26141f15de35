"""The worker: RQ's, without a fork; it waits for a Redis that is down."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from flask import Flask
from redis.exceptions import RedisError
from rq import SimpleWorker
from rq.exceptions import StopRequested
from rq.worker import WorkerStatus

from afterhours_service.config import Settings
from afterhours_service.jobs import process
from afterhours_service.jobs.jobs import QUEUES
from afterhours_service.stores import watch
from afterhours_service.stores.redis import RECONNECT_SECONDS, WORKER_TIMEOUT_SECONDS, connect, use_worker_timeout
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

WORKER_TTL_SECONDS = 17  # RQ blocks for fifteen seconds less, then sends a heartbeat

MAINTENANCE_SECONDS = 30  # how often a worker looks for jobs of dead workers


class Worker(SimpleWorker):
    """RQ's worker without the fork; it retries Redis each second, and only signals stop it."""

    max_connection_wait_time = RECONNECT_SECONDS

    @property
    def connection_timeout(self) -> int:
        """How long to wait for a Redis that is connected and silent, in seconds."""
        return int(WORKER_TIMEOUT_SECONDS)

    def subscribe(self) -> None:
        """Take no commands from Redis: an outage would leave their thread and connection behind."""

    def _install_signal_handlers(self) -> None:
        """Keep the handlers of `run_worker`, which outlive this worker."""

    def stop(self) -> None:
        """End the loop after the current job; raise StopRequested when there is none."""
        self._stop_requested = True
        if self.get_state() != WorkerStatus.BUSY:
            raise StopRequested

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        """Send a heartbeat, unless the worker is to stop: RQ may have swallowed an earlier StopRequested."""
        if self._stop_requested:
            self.stop()
        super().heartbeat(*args, **kwargs)


def run_worker(app: Flask, queues: Sequence[str] = QUEUES) -> None:
    """Run jobs until SIGTERM or SIGINT; wait for a Redis that is away, and continue when it is back.

    Jobs run in this process, so that a timer costs no fork. Each job has a time limit, and so have its statements.
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
    use_worker_timeout(app)
    watch.start(app)
    connection = connect(settings, WORKER_TIMEOUT_SECONDS)
    with suppress(StopRequested):
        process.begin(settings, connection, stop)
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
                logger.exception("worker failed")  # the next round makes a new one
            worker = None
            connection.connection_pool.disconnect()  # RQ swallows some errors: reconnect in any case
            time.sleep(0 if stopped else RECONNECT_SECONDS)
