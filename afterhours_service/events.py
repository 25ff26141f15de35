"""Events for the host's chat service, published after the commit."""

import json
from datetime import UTC, datetime
from typing import Any

from redis.client import Pipeline

from afterhours_service.schemas import isoformat

CHANNEL = "after_hours:events"


def publish(pipeline: Pipeline, kind: str, member_id: str, **payload: Any) -> None:
    """Put one event into the trip to Redis; datetimes in the payload are written as clients read them.

    kind: the part after `after_hours:`, such as `session_started`.
    """
    event = {
        "type": f"after_hours:{kind}",
        "targetUserId": member_id,
        "payload": {key: isoformat(v) if isinstance(v, datetime) else v for key, v in payload.items()},
        "timestamp": isoformat(datetime.now(UTC)),
    }
    pipeline.publish(CHANNEL, json.dumps(event))
