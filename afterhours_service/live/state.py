"""What the gateway asks the database: may a member connect, and what is their state? Called off the event loop."""

from typing import Any, NamedTuple

from afterhours_service.config import current_settings
from afterhours_service.matching import service as matching
from afterhours_service.matching.schemas import MatchSchema
from afterhours_service.sessions import service as sessions
from afterhours_service.sessions.schemas import ActiveSchema
from afterhours_service.web import gate

_SESSION, _MATCH = ActiveSchema(), MatchSchema()


class State(NamedTuple):
    """The state of a member. payload: of `after_hours:state`. ends_at: seconds since the epoch; see Connection."""

    payload: dict[str, Any]
    ends_at: dict[str, float]


def admit(member_id: str) -> State:
    """Let the member through the gate, and return their state. Raises as `gate.check` and `read` do."""
    gate.check(member_id)
    return read(member_id)


def read(member_id: str) -> State:
    """Return the member's state. Raises DBAPIError, and TimeoutError when the pool has no connection left."""
    session = sessions.status(member_id)
    match = matching.current(member_id).match if session and current_settings().matching_enabled else None
    ends_at = {}
    if session:
        ends_at["session"] = session.expires_at.timestamp()
    if match:
        ends_at["match"] = min(match.expires_at, match.auto_decline_at or match.expires_at).timestamp()
    return State({"session": session and _SESSION.dump(session), "match": match and _MATCH.dump(match)}, ends_at)
