"""What the gateway asks the database: may a member connect, and what is their state? Called off the event loop."""

from typing import Any

from afterhours_service.matching import service as matching
from afterhours_service.matching.schemas import MatchSchema
from afterhours_service.sessions import service as sessions
from afterhours_service.sessions.schemas import ActiveSchema
from afterhours_service.web import gate

_SESSION, _MATCH = ActiveSchema(), MatchSchema()


def admit(member_id: str) -> dict[str, Any]:
    """Let the member through the gate, and return their state. Raises as `gate.check` and `read` do."""
    gate.check(member_id)
    return read(member_id)


def read(member_id: str) -> dict[str, Any]:
    """Return the payload of `after_hours:state`. Raises DBAPIError, and TimeoutError when the pool is exhausted."""
    session = sessions.status(member_id)
    match = matching.current(member_id).match if session else None
    return {"session": session and _SESSION.dump(session), "match": match and _MATCH.dump(match)}
