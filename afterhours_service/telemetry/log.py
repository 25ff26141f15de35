"""Structured logs on standard error: one JSON object per line, with the request's id if there is one."""

import json
import logging
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast

import structlog
from structlog.types import EventDict, Processor

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# PostgreSQL's error details quote the row that violates a CHECK, and the line of the statement with its values.
# psycopg2 includes them in the message, up to an empty line.
_ROW_DETAIL = re.compile(r"^(DETAIL|CONTEXT|QUERY|LINE \d+):.*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_handler = logging.StreamHandler()


def configure(level: str) -> None:
    """Render all logs of the process, ours and the libraries', as JSON.

    level: a level's name, such as INFO.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _without_row_details,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    _handler.stream = sys.stderr  # setStream would flush the previous one, which may be closed
    _handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.addHandler(_handler)
    root.setLevel(level)
    for noisy in ("rq.worker", "rq.job", "alembic.runtime.migration", "pyvips"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a structured logger. name: the module's."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(name))


def request_line(name: str, **fields: str | float | None) -> None:
    """Log an answered request, as the logger `name` would at level INFO.

    Written directly: structlog and logging would take a tenth of a request's CPU.
    """
    if not logging.getLogger(name).isEnabledFor(logging.INFO):
        return
    line = {
        "event": "request",
        **fields,
        **structlog.contextvars.get_contextvars(),
        "level": "info",
        "logger": name,
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }
    with suppress(OSError, ValueError):  # a full or closed log must not fail the request
        _handler.stream.write(json.dumps(line) + "\n")


def _without_row_details(_logger: Any, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _ROW_DETAIL.sub(r"\1: (left out)", value)
    return event
