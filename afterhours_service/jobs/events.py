"""Events for the host's chat service, published after the commit.

Processes publish in any order. So Redis remembers for half an hour which sessions' ends were published, and when each
session was last extended. A script checks that and publishes in one step: an end is published once, no event of a
session follows its end, and no warning follows an extension that made it obsolete.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from redis.client import Pipeline

from afterhours_service.text import isoformat

CHANNEL = "after_hours:events"
PUBLISHED = "after-hours:published"  # a sorted set: `<id>` by last extension, `<id>/over` by end
PUBLISHED_SECONDS = 1800

# No event of a session follows its end; a warning is skipped if it is older than the session's last extension.
# Publish first, then record: if Redis is full, pcall lets the record fail, as a duplicate harms less than a lost event.
# ZREMRANGEBYSCORE comes before both: a read-only replica refuses it, so that nothing is published there.
_PUBLISH = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[1])
for i = 2, #ARGV, 4 do
    local kind, session, moment = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
    local over = redis.call('ZSCORE', KEYS[2], session .. '/over')
    local extended = tonumber(redis.call('ZSCORE', KEYS[2], session) or 0)
    if not over and (kind ~= 'session_expiring' or extended < moment) then
        redis.call('PUBLISH', KEYS[1], ARGV[i + 3])
        if kind == 'session_ended' or kind == 'session_expired' then
            redis.pcall('ZADD', KEYS[2], now, session .. '/over')
        elseif kind == 'session_extended' and extended < moment then
            redis.pcall('ZADD', KEYS[2], ARGV[i + 2], session)
        end
    end
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
"""


class Event(NamedTuple):
    """An event about a session.

    kind: the part after `after_hours:`, such as `session_started`. at: the database's time when it happened. payload:
    without the session's id; datetimes are sent as ISO 8601.
    """

    kind: str
    member_id: str
    session_id: str
    at: datetime
    payload: Mapping[str, Any]


def publish(pipeline: Pipeline, *events: Event) -> None:
    """Add events to the pipeline, in this order; Redis skips those that are obsolete.

    They are one command: a command for each event would take longer than ending the sessions.
    """
    now = isoformat(datetime.now(UTC))
    arguments: list[str] = []
    for event in events:
        arguments += (event.kind, event.session_id, repr(event.at.timestamp()), _json(event, now))
    if arguments:
        pipeline.eval(_PUBLISH, 2, CHANNEL, PUBLISHED, PUBLISHED_SECONDS, *arguments)


def _json(event: Event, now: str) -> str:
    payload = {"sessionId": event.session_id, **event.payload}
    return json.dumps(
        {
            "type": f"after_hours:{event.kind}",
            "targetUserId": event.member_id,
            "payload": {key: isoformat(v) if isinstance(v, datetime) else v for key, v in payload.items()},
            "timestamp": now,
        }
    )
