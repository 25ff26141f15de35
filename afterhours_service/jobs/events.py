"""Events for the host's chat service, published after the commit.

Processes publish in any order. So Redis remembers for half an hour which sessions' expiries were published, and when a
session was last extended or ended. A script checks that and publishes in one step: an expiry is published once, and no
warning follows a change that made it untrue.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from redis.client import Pipeline

from afterhours_service.text import isoformat

CHANNEL = "after_hours:events"
PUBLISHED = "after-hours:published"  # a sorted set: a session by its last change, and `…/expired` by its publication
PUBLISHED_SECONDS = 1800

# 'once' skips an expiry that was published; 'unless changed' skips a warning older than the session's last change.
# Publish first, then record: if Redis is full, pcall lets the record fail, as a duplicate harms less than a lost event.
# ZREMRANGEBYSCORE comes before both: a read-only replica refuses it, and nothing is published there.
_PUBLISH = """
local when = ARGV[1]
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[2])
for i = 3, #ARGV, 3 do
    local session, moment = ARGV[i], tonumber(ARGV[i + 1])
    local expired = redis.call('ZSCORE', KEYS[2], session .. '/expired')
    local changed = tonumber(redis.call('ZSCORE', KEYS[2], session) or 0)
    if when == 'always' or not expired and (when == 'once' or changed < moment) then
        redis.call('PUBLISH', KEYS[1], ARGV[i + 2])
        if when == 'once' then
            redis.pcall('ZADD', KEYS[2], now, session .. '/expired')
        elseif when == 'always' and changed < moment then
            redis.pcall('ZADD', KEYS[2], ARGV[i + 1], session)
        end
    end
end
redis.call('EXPIRE', KEYS[2], ARGV[2])
"""


class Event(NamedTuple):
    """An event about a session.

    at: when the database decided it. payload: without the session's id; datetimes are sent as ISO 8601.
    """

    member_id: str
    session_id: str
    at: datetime
    payload: Mapping[str, Any]


def publish(pipeline: Pipeline, kind: str, member_id: str, **payload: Any) -> None:
    """Add one event to the pipeline.

    kind: the part after `after_hours:`, such as `session_started`.
    """
    pipeline.publish(CHANNEL, _json(kind, member_id, payload, isoformat(datetime.now(UTC))))


def publish_change(pipeline: Pipeline, kind: str, event: Event) -> None:
    """Add the event of an extension or an end to the pipeline; earlier warnings are not published after it."""
    _publish(pipeline, "always", kind, [event])


def publish_once(pipeline: Pipeline, kind: str, events: Iterable[Event]) -> None:
    """Add the expiries of sessions to the pipeline; Redis skips those that were published before."""
    _publish(pipeline, "once", kind, events)


def publish_unless_changed(pipeline: Pipeline, kind: str, events: Iterable[Event]) -> None:
    """Add warnings to the pipeline; Redis skips those whose session has changed since."""
    _publish(pipeline, "unless changed", kind, events)


def _publish(pipeline: Pipeline, when: str, kind: str, events: Iterable[Event]) -> None:
    """Add events as one command: one command each would take longer than to end the sessions."""
    now = isoformat(datetime.now(UTC))
    arguments: list[str] = []
    for event in events:
        payload = {"sessionId": event.session_id, **event.payload}
        arguments += (event.session_id, repr(event.at.timestamp()), _json(kind, event.member_id, payload, now))
    if arguments:
        pipeline.eval(_PUBLISH, 2, CHANNEL, PUBLISHED, when, PUBLISHED_SECONDS, *arguments)


def _json(kind: str, member_id: str, payload: Mapping[str, Any], now: str) -> str:
    return json.dumps(
        {
            "type": f"after_hours:{kind}",
            "targetUserId": member_id,
            "payload": {key: isoformat(v) if isinstance(v, datetime) else v for key, v in payload.items()},
            "timestamp": now,
        }
    )
