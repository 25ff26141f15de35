"""Settings of the API's server, read where `gunicorn` is started; its command line and GUNICORN_CMD_ARGS prevail.

The address is HOST:PORT of `--bind` (127.0.0.1:8000), the number of processes
WEB_CONCURRENCY (1; two a core are plenty).
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gunicorn.http.wsgi

# A request that a worker is at has so long when the server is to stop: less than the ten seconds of Docker.
graceful_timeout = 8
# A worker that is silent for so long is replaced. A photo takes 20 s at most, a storage that hangs 13 s.
timeout = 30
# The sign of life that a worker gives goes into memory: on a busy disk it would come late, and the worker be replaced.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
# The app writes one JSON line per request itself, without addresses; so there is no access log of gunicorn's.
accesslog = None
# No restart after so many requests: photos, which might leak, are made in processes that end with them.
max_requests = 0
# It would be one file in the user's home for every server there.
control_socket_disable = True
# Nothing here trusts X-Forwarded-…: limits are counted per member, links are made from PUBLIC_URL. So the default stays
# for forwarded_allow_ips; and a proxy in front must take slow clients off a synchronous worker's hands.

# A longer request line or header, or more of them, is refused. A token is the longest: RS256 ones take about 1 KB.
limit_request_line = 4094  # bytes
limit_request_fields = 50
limit_request_field_size = 8190  # bytes
# Of the `Server` header: whose program, and what version, is nobody's concern.
gunicorn.http.wsgi.SERVER = "after-hours"

# Where the workers keep their metrics for one another, so that whichever is asked tells those of all. Known to the
# metrics' library from its import on, so it is set here, before there are workers.
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
