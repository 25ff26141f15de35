"""Events for the host's chat service, published after the commit."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from redis.client import Pipeline

from afterhours_service.queue import PROBE
from afterhours_service.schemas import isoformat

CHANNEL = "after_hours:events"

# The DEL does nothing but make a replica refuse: its subscribers are none, and the events would be taken for published.
_PUBLISH_ALL = "redis.call('DEL', KEYS[2]) for _, event in ipairs(ARGV) do redis.call('PUBLISH', KEYS[1], event) end"


def publish(pipeline: Pipeline, kind: str, member_id: str, **payload: Any) -> None:
    """Put one event into the trip to Redis; datetimes in the payload are written as clients read them.

    kind: the part after `after_hours:`, such as `session_started`.
    """
    pipeline.publish(CHANNEL, _event(kind, member_id, payload, isoformat(datetime.now(UTC))))


def publish_all(pipeline: Pipeline, kind: str, payloads: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Put many events of a kind into the trip, as one command, so that Redis takes all or none; no events, no command.

    A command for each would take a worker more time than PostgreSQL takes to end the sessions. payloads: of each event
    the member's id, and the payload as `publish` has it.
    """
    now = isoformat(datetime.now(UTC))
    if events := [_event(kind, member_id, payload, now) for member_id, payload in payloads]:
        pipeline.eval(_PUBLISH_ALL, 2, CHANNEL, PROBE, *events)


def _event(kind: str, member_id: str, payload: Mapping[str, Any], now: str) -> str:
    return json.dumps(
        {
            "type": f"after_hours:{kind}",
            "targetUserId": member_id,
            "payload": {key: isoformat(v) if isinstance(v, datetime) else v for key, v in payload.items()},
            "timestamp": now,
        }
    )
