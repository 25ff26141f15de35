"""Settings of the API's server, read where `gunicorn` is started; its command line and GUNICORN_CMD_ARGS prevail."""

import os
import shutil
import tempfile
from typing import Any

import gunicorn.http.wsgi

graceful_timeout = 8  # seconds that a request in flight has left when the server is to stop
control_socket_disable = True  # it would be one file in the user's home for every server there
timeout = 30  # seconds until a worker that is stuck in a request is ended, and another one started
limit_request_line = 4094  # bytes, as for the two below: a longer one is refused
limit_request_fields = 50
limit_request_field_size = 8190  # a token is the longest header; RS256 ones take about 1 KB
gunicorn.http.wsgi.SERVER = (
    "after-hours"  # of the `Server` header: whose program, and what version, is nobody's concern
)

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
