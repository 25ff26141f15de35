"""The process that starts the API's workers, and replaces those that die or hang."""

import contextlib
import functools
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flask import Flask
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.net import SocketHolder
from granian.server.mp import MPServer, WorkerProcess
from prometheus_client.multiprocess import mark_process_dead

from afterhours_service.config import Settings
from afterhours_service.server.worker import HUNG_SECONDS, STOP_SECONDS, load
from afterhours_service.telemetry import log

logger = log.get_logger(__name__)

HEAD_BYTES = 16 * 1024  # a larger head is refused with 431; a token is its largest part, of about 1 KB
# Until a request's head must have come. It also ends idle connections, so a proxy must end its own before, as they do
# after 60 s.
HEAD_SECONDS = 75
CONNECTIONS = 1000  # of one worker; more wait in the backlog
UNREAD_SECONDS = 60
BACKLOG = 1024
QUICK_DEATH_SECONDS = 5  # a worker that lived no longer is not replaced at once

PREFIX = "after-hours-api-"
MEMORY = Path("/dev/shm")  # noqa: S108 - on a busy disk heartbeats would be late


def run_api(settings: Settings, create_app: Callable[[], Flask]) -> None:
    """Serve the API until SIGTERM or SIGINT; at SIGHUP, replace each worker, with the code that is now in its place.

    create_app: called in each worker; importable, as workers are new interpreters. Raises SystemExit if the address
    cannot be used.
    """
    log.configure(settings.log_level)
    multiprocessing.set_start_method("spawn", force=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY if MEMORY.is_dir() else None))
    with contextlib.ExitStack() as at_end:
        at_end.callback(shutil.rmtree, folder, ignore_errors=True)
        listeners = _listen(settings.api_host, settings.api_port, settings.web_concurrency)
        for listener in listeners:
            at_end.enter_context(listener)
        # Where the workers share their metrics, so that any of them can answer with those of all.
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(folder))
        _allow_files()
        server = _Server(settings, listeners, folder)
        threading.Thread(target=server.replace_hung_workers, name="hung-workers", daemon=True).start()
        logger.info("api started", host=settings.api_host, port=settings.api_port, workers=settings.web_concurrency)
        loader: Any = functools.partial(load, create_app, folder, os.getpid())
        server.serve(target_loader=loader, wrap_loader=False)
    logger.info("api stopped")


class _Wakeup(threading.Event):
    """An event that is waited for a second at most: granian clears it, and might clear one that it has not seen."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(min(1, timeout or 1))


class _Server(MPServer):
    """granian's server, with sockets that outlive their workers, and a look at the workers' heartbeats."""

    def __init__(self, settings: Settings, listeners: Sequence[socket.socket], folder: Path) -> None:
        super().__init__(
            "",  # the app comes from a loader, and the sockets are ours
            interface=Interfaces.RSGI,
            workers=settings.web_concurrency,
            loop=Loops.asyncio,
            http=HTTPModes.http1,
            websockets=False,
            backpressure=CONNECTIONS,
            http1_settings=HTTP1Settings(header_read_timeout=HEAD_SECONDS * 1000, max_buffer_size=HEAD_BYTES),
            log_level=LogLevels.warning,
            log_dictconfig={"handlers": {}, "loggers": {"_granian": {"propagate": True}}},  # as JSON, with all others
            respawn_failed_workers=True,
            workers_kill_timeout=STOP_SECONDS,
        )
        self._listeners, self._folder = listeners, folder
        self.main_loop_interrupt = _Wakeup()

    def _init_shared_socket(self) -> None:
        """Open none: granian's end with their workers, and reset the connections that wait in them."""

    def _spawn_worker(self, idx: int, *args: Any, **options: Any) -> WorkerProcess:
        self._sso = self._listeners[idx]
        holder: Any = SocketHolder  # its types lack two arguments: whether it is a Unix socket, and the backlog
        self._shd = holder(self._sso.fileno(), False, BACKLOG)
        return super()._spawn_worker(idx, *args, **options)

    def _drop_shared_socket(self) -> None:
        """Accept no more: what still came would be reset in the end."""
        for listener in self._listeners:
            listener.close()

    def _respawn_workers(self, workers: list[int], *args: Any, **options: Any) -> None:
        for index in workers:
            if self.interrupt_signal:
                return
            old = self.wrks[index]
            if time.monotonic() - old.birth < QUICK_DEATH_SECONDS and old.inner.exitcode:
                time.sleep(1)
            super()._respawn_workers([index], *args, **options)
            self.respawned_wrks.clear()  # granian would give up when one dies again soon
            mark_process_dead(old.inner.pid)  # type: ignore[no-untyped-call] # its gauges leave the sums
            self._heart(old).unlink(missing_ok=True)

    def replace_hung_workers(self) -> None:
        """Kill workers without a heartbeat, for ever; granian then replaces them."""
        while True:
            time.sleep(1)
            for worker in list(self.wrks):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # not loaded yet, or dead
                    if time.monotonic() - self._heart(worker).stat().st_mtime > HUNG_SECONDS:
                        logger.error("worker hangs", pid=worker.inner.pid)
                        os.kill(worker.inner.pid, signal.SIGUSR1)  # it writes where each of its threads is
                        time.sleep(0.5)
                        os.kill(worker.inner.pid, signal.SIGKILL)

    def _heart(self, worker: WorkerProcess) -> Path:
        return self._folder / str(worker.inner.pid)


def _listen(host: str, port: int, workers: int) -> list[socket.socket]:
    """Return a listening socket for each worker: the kernel spreads the connections over them."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()  # fails if another program listens there
        listeners = [
            socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=True) for _ in range(workers)
        ]
    except OSError as error:
        raise SystemExit(f"cannot listen on {host}, port {port} (API_HOST, API_PORT): {error.strerror}") from error
    for listener in listeners:
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # ends connections of clients that do not read their answers
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
        listener.setblocking(False)
        listener.set_inheritable(True)
    return listeners


def _allow_files() -> None:
    """Raise the limit of open files as far as it may be: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
