"""Settings of the API's server, read where `gunicorn` is started; its command line and GUNICORN_CMD_ARGS prevail.

`--bind HOST:PORT` sets the address (127.0.0.1:8000 by default), and WEB_CONCURRENCY the number of processes (1 by
default; two per core are enough).
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gunicorn.http.wsgi

# How long a request in progress may take after SIGTERM: less than the ten seconds that Docker allows.
graceful_timeout = 8
# A worker without a heartbeat for this long is replaced. A photo takes at most 20 s, a storage that hangs 13 s.
timeout = 30
# Heartbeats go to memory: on a busy disk they would be late, and the worker would be replaced.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
# The app writes one JSON line per request itself, without addresses; so gunicorn's access log is off.
accesslog = None
# No restarts after a number of requests: photos, which might leak memory, are processed in processes of their own.
max_requests = 0
# The control socket would be one file in the user's home, shared by all servers of that user.
control_socket_disable = True
# Nothing here trusts X-Forwarded-…: limits are counted per member, links are made from PUBLIC_URL. So
# forwarded_allow_ips keeps its default. A proxy in front must buffer slow clients for these synchronous workers.

# A longer request line or header, or more of them, is refused. A token is the longest: RS256 ones take about 1 KB.
limit_request_line = 4094  # bytes
limit_request_fields = 50
limit_request_field_size = 8190  # bytes
# The `Server` header: clients need not know the program and its version.
gunicorn.http.wsgi.SERVER = "after-hours"

# Where the workers share their metrics, so that any of them can answer with those of all. The metrics library reads it
# when it is imported, so it is set here, before there are workers.
_PREFIX = "after-hours-metrics-"
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix=_PREFIX)


def child_exit(_server: Any, worker: Any) -> None:
    """Take a dead worker's gauges out of the sums; its counters stay in them."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415 - after the environment is set

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    """Remove the folder, unless it was given, or a new master has taken it over (SIGUSR2)."""
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]
    if _PREFIX in folder and not server.reexec_pid:
        shutil.rmtree(folder, ignore_errors=True)
