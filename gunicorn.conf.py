"""Settings of the API's server, read where `gunicorn` is started; its command line and GUNICORN_CMD_ARGS prevail.

The address is HOST:PORT of `--bind` (127.0.0.1:8000), the number of processes
WEB_CONCURRENCY (1; two a core are plenty).
"""

from pathlib import Path

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
