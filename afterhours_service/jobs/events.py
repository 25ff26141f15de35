"""Events for the host's chat service, published after the commit.

Between commit and publication a process may be overtaken by another. So Redis keeps, for half an hour, which sessions'
expiries were published, and when a session was extended or ended, if that was. A script looks and publishes in one
step: an expiry is published once, whoever is late, and no warning follows what made it untrue.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from redis.client import Pipeline

from afterhours_service.text import isoformat

CHANNEL = "after_hours:events"
PUBLISHED = "after-hours:published"  # a sorted set: a session and the moment it changed, or its expiry was published
PUBLISHED_SECONDS = 1800

# First published, then noted; a Redis that is full does the one without the other: that an event is doubled does less
# harm than that it is lost. One that may not be written to, a replica, refuses the script with its second command.
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

    at: when the database decided it. payload: but for the session; datetimes are written as clients read them.
    """

    member_id: str
    session_id: str
    at: datetime
    payload: Mapping[str, Any]


def publish(pipeline: Pipeline, kind: str, member_id: str, **payload: Any) -> None:
    """Put one event into the trip to Redis.

    kind: the part after `after_hours:`, such as `session_started`.
    """
    pipeline.publish(CHANNEL, _json(kind, member_id, payload, isoformat(datetime.now(UTC))))


def publish_change(pipeline: Pipeline, kind: str, event: Event) -> None:
    """Put an event into the trip after which no earlier warning of the session's expiry is true."""
    _publish(pipeline, "always", kind, [event])


def publish_once(pipeline: Pipeline, kind: str, events: Iterable[Event]) -> None:
    """Put the expiries of sessions into the trip; those that are published by then are left out."""
    _publish(pipeline, "once", kind, events)


def publish_unless_changed(pipeline: Pipeline, kind: str, events: Iterable[Event]) -> None:
    """Put warnings into the trip; those whose session has changed since are left out."""
    _publish(pipeline, "unless changed", kind, events)


def _publish(pipeline: Pipeline, when: str, kind: str, events: Iterable[Event]) -> None:
    """Put many events into the trip as one command: one for each would take more time than to end the sessions."""
    now = isoformat(datetime.now(UTC))
    given: list[str] = []
    for event in events:
        payload = {"sessionId": event.session_id, **event.payload}
        given += (event.session_id, repr(event.at.timestamp()), _json(kind, event.member_id, payload, now))
    if given:
        pipeline.eval(_PUBLISH, 2, CHANNEL, PUBLISHED, when, PUBLISHED_SECONDS, *given)


def _json(kind: str, member_id: str, payload: Mapping[str, Any], now: str) -> str:
    return json.dumps(
        {
            "type": f"after_hours:{kind}",
            "targetUserId": member_id,
            "payload": {key: isoformat(v) if isinstance(v, datetime) else v for key, v in payload.items()},
            "timestamp": now,
        }
    )
