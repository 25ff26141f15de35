"""Events for the host's chat service, published after the commit.

Processes publish in any order. So Redis remembers for half an hour which ends were published, of sessions and of
matches, and when each session was last extended. A script checks that and publishes in one step: an end is published
once, nothing but the end of a match follows the end of its session, no match is announced after its end, and no
warning follows an extension that made it obsolete.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from redis.client import Pipeline

from afterhours_service.text import isoformat

CHANNEL = "after_hours:events"
PUBLISHED = "after-hours:published"  # a sorted set: `<id>` by last extension, `<id>/over` by end; ids as in Event
PUBLISHED_SECONDS = 1800

# A warning is skipped if it is older than the session's last extension.
# Publish first, then record: if Redis is full, pcall lets the record fail, as a duplicate harms less than a lost event.
# ZREMRANGEBYSCORE comes before both: a read-only replica refuses it, so that nothing is published there.
_PUBLISH = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[1])
local function is_over(id)
    return id ~= '' and redis.call('ZSCORE', KEYS[2], id .. '/over')
end
for i = 2, #ARGV, 5 do
    local kind, session, match, moment = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
    local extended = tonumber(redis.call('ZSCORE', KEYS[2], session) or 0)
    local skip = is_over(match) or (kind ~= 'match_expired' and is_over(session))
    if not skip and (kind ~= 'session_expiring' or extended < moment) then
        redis.call('PUBLISH', KEYS[1], ARGV[i + 4])
        if kind == 'session_ended' or kind == 'session_expired' then
            redis.pcall('ZADD', KEYS[2], now, session .. '/over')
        elseif kind == 'match_expired' then
            redis.pcall('ZADD', KEYS[2], now, match .. '/over')
        elseif kind == 'session_extended' and extended < moment then
            redis.pcall('ZADD', KEYS[2], ARGV[i + 3], session)
        end
    end
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
"""


class Event(NamedTuple):
    """An event for a member.

    kind: the part after `after_hours:`, such as `session_started`. session_id: the member's session, empty if it is
    unknown. at: the database's time when it happened. payload: datetimes are sent as ISO 8601. match_id: the match that
    it is about.
    """

    kind: str
    member_id: str
    session_id: str
    at: datetime
    payload: Mapping[str, Any]
    match_id: str | None = None


def publish(pipeline: Pipeline, *events: Event) -> None:
    """Add events to the pipeline, in this order; Redis skips those that are obsolete.

    They are one command: a command for each event would take longer than ending the sessions.
    """
    now = isoformat(datetime.now(UTC))
    arguments: list[str] = []
    for event in events:
        match = f"{event.match_id}/{event.member_id}" if event.match_id else ""  # each of the two is told of the end
        arguments += (event.kind, event.session_id, match, repr(event.at.timestamp()), _json(event, now))
    if arguments:
        pipeline.eval(_PUBLISH, 2, CHANNEL, PUBLISHED, PUBLISHED_SECONDS, *arguments)


def _json(event: Event, now: str) -> str:
    return json.dumps(
        {
            "type": f"after_hours:{event.kind}",
            "targetUserId": event.member_id,
            "payload": {key: isoformat(v) if isinstance(v, datetime) else v for key, v in event.payload.items()},
            "timestamp": now,
        }
    )
