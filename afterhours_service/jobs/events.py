"""Events for the host's chat service, published after the commit.

Between commit and publication a process may be overtaken by another. So Redis keeps, for half an hour, which sessions'
ends were published, and when a session was extended, if it was. A script looks and publishes in one step: an end is
published once, whoever is late; nothing of a session follows it; and no warning follows what made it untrue.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from redis.client import Pipeline

from afterhours_service.text import isoformat

CHANNEL = "after_hours:events"
PUBLISHED = "after-hours:published"  # a sorted set: a session and the moment it was extended, or its end was published
PUBLISHED_SECONDS = 1800

# First published, then noted; a Redis that is full does the one without the other: that an event is doubled does less
# harm than that it is lost. One that may not be written to, a replica, refuses the script with its second command.
# First published, then noted; a Redis that is full does the one without the other: that an event is doubled does less
# harm than that it is lost. One that may not be written to, a replica, refuses the script with its second command.
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

    kind: the part after `after_hours:`, such as `session_started`. at: when the database decided it. payload: but for
    the session; datetimes are written as clients read them.
    """

    kind: str
    member_id: str
    session_id: str
    at: datetime
    payload: Mapping[str, Any]


def publish(pipeline: Pipeline, *events: Event) -> None:
    """Put events into the trip, in this order, but for those that others have made untrue by then.

    As one command: one for each would take more time than to end the sessions.
    """
    now = isoformat(datetime.now(UTC))
    given: list[str] = []
    for event in events:
        given += (event.kind, event.session_id, repr(event.at.timestamp()), _json(event, now))
    if given:
        pipeline.eval(_PUBLISH, 2, CHANNEL, PUBLISHED, PUBLISHED_SECONDS, *given)


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
