"""The connections of this process, by member and by id; and what each has to know. Without I/O."""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from afterhours_service.live.wire import Wire

CONNECTIONS_PER_MEMBER = 5
GRACE_SECONDS = 3.0  # after the end of a session or match, for its event to arrive
PAUSE_SECONDS = 10.0  # between two looks at what should be over: the clocks may differ

# What an event says about the end of the member's session or match.
_SUBJECTS = {
    "after_hours:session_started": "session",
    "after_hours:session_extended": "session",
    "after_hours:session_ended": "session",
    "after_hours:session_expired": "session",
    "after_hours:match": "match",
    "after_hours:match_expired": "match",
}

Event = tuple[str, dict[str, Any]]  # its name, such as after_hours:match, and its payload


@dataclass(slots=True, eq=False)
class Connection:
    """A member's connection.

    token_expires_at: seconds since the epoch. ends_at: when the member's `session` and `match`
    end by themselves, in seconds since the epoch, as far as the client was told. is_stale: the client may have missed
    something. waiting: events that come while the state is read; None while none is. told_at: when the client was last
    told the state, on the monotonic clock.
    """

    id: str
    member_id: str
    token_expires_at: float
    wire: Wire
    ends_at: dict[str, float] = field(default_factory=dict)
    is_stale: bool = True
    waiting: list[Event] | None = None
    told_at: float = 0.0

    def note(self, event: Event) -> None:
        """Remember when the session or match that the event tells of will end."""
        name, payload = event
        if subject := _SUBJECTS.get(name):
            moments = (payload.get(key) for key in ("expiresAt", "autoDeclineAt"))
            if ends := [datetime.fromisoformat(moment).timestamp() for moment in moments if moment]:
                self.ends_at[subject] = min(ends)
            else:
                self.ends_at.pop(subject, None)

    def is_overdue(self, now: float) -> bool:
        """Return whether something has ended, by the clock, and no event told the client. now: seconds since 1970."""
        ended = any(moment + GRACE_SECONDS < now for moment in self.ends_at.values())
        return ended and time.monotonic() - self.told_at > PAUSE_SECONDS


class Connections:
    """All connections of the process."""

    def __init__(self) -> None:
        self._by_id: dict[str, Connection] = {}
        self._by_member: dict[str, list[Connection]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._by_id.values()))

    def __contains__(self, connection: Connection) -> bool:
        return connection.id in self._by_id

    def add(self, connection: Connection) -> list[Connection]:
        """Add a connection, and return those of the member that are too many: the oldest."""
        self._by_id[connection.id] = connection
        theirs = self._by_member[connection.member_id]
        theirs.append(connection)
        return theirs[:-CONNECTIONS_PER_MEMBER]

    def remove(self, connection_id: str) -> Connection | None:
        """Forget a connection, and return it; None if it is unknown, such as one that was refused."""
        connection = self._by_id.pop(connection_id, None)
        if connection:
            theirs = self._by_member[connection.member_id]
            theirs.remove(connection)
            if not theirs:
                del self._by_member[connection.member_id]
        return connection

    def of(self, member_id: str) -> list[Connection]:
        """Return the member's connections."""
        return list(self._by_member.get(member_id, ()))

    def members(self) -> list[str]:
        """Return the members who are connected."""
        return list(self._by_member)
