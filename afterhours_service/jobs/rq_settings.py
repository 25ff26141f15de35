"""Where Redis is, for RQ's own commands: `rq worker --config afterhours_service.jobs.rq_settings QUEUE…`.

They learn of sentinels from such a module only, and not from a URL. The settings are read from the environment.
"""

from typing import Any

from afterhours_service.config import Settings
from afterhours_service.config.urls import SentinelUrl
from afterhours_service.stores.redis import WORKER_TIMEOUT_SECONDS, sentinel_arguments

_url = Settings.from_environ().redis_url
_sentinels = SentinelUrl.parse(_url)

REDIS_URL: str | None = None if _sentinels else _url
SENTINEL: dict[str, Any] | None = None
if _sentinels:
    _servers = sentinel_arguments(_sentinels, WORKER_TIMEOUT_SECONDS)
    SENTINEL = {
        "INSTANCES": _sentinels.sentinels,
        "MASTER_NAME": _sentinels.service,
        "SENTINEL_KWARGS": _servers.pop("sentinel_kwargs"),
        "CONNECTION_KWARGS": _servers,
    }
