"""The connections of this process, by member and by id; and what each has to know. Without I/O."""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Self

from afterhours_service.live.queries import Present
from afterhours_service.live.wire import Wire

STATE = "after_hours:state"
CONNECTIONS_PER_MEMBER = 5
GRACE_SECONDS = 3.0  # after the end of a session or match, for its event to arrive
PAUSE_SECONDS = 10.0  # between two looks at what should be over: the clocks may differ

# Events about a member's session or match: what they are about, and whether it goes on.
_SUBJECTS = {
    "after_hours:session_started": ("session", True),
    "after_hours:session_extended": ("session", True),
    "after_hours:session_ended": ("session", False),
    "after_hours:session_expired": ("session", False),
    "after_hours:match": ("match", True),
    "after_hours:match_expired": ("match", False),
}

Event = tuple[str, dict[str, Any]]  # its name, such as after_hours:match, and its payload


class Shown(NamedTuple):
    """A session or match that a client shows. ends_at: when it is over by itself, in seconds since the epoch."""

    id: str
    ends_at: float

    @classmethod
    def of(cls, name: str, payload: dict[str, Any]) -> Self:
        """Return what a payload tells of; its `name`d id may be called `id` as well."""
        moments = [payload.get("expiresAt"), payload.get("autoDeclineAt")]
        ends = [datetime.fromisoformat(moment).timestamp() for moment in moments if moment]
        return cls(str(payload.get(f"{name}Id") or payload.get("id")), min(ends))


@dataclass(slots=True, eq=False)
class Connection:
    """A member's connection.

    token_expires_at: seconds since the epoch. shown: the `session` and the `match` that the client was told of last.
    is_stale: the client may have missed something. waiting: events that come while the state is read; None while none
    is. told_at: when the client was last told the state, on the monotonic clock.
    """

    id: str
    member_id: str
    token_expires_at: int
    wire: Wire
    shown: dict[str, Shown] = field(default_factory=dict)
    is_stale: bool = False
    waiting: list[Event] | None = None
    told_at: float = 0.0

    def note(self, event: Event) -> None:
        """Remember what the client shows after an event, or after the state."""
        name, payload = event
        if name == STATE:
            self.shown = {key: Shown.of(key, each) for key, each in payload.items() if each}
            self.told_at = time.monotonic()
        elif name in _SUBJECTS:
            subject, goes_on = _SUBJECTS[name]
            if goes_on:
                try:
                    self.shown[subject] = Shown.of(subject, payload)
                except (TypeError, ValueError):  # it does not say until when: the next look at everybody will
                    self.shown.pop(subject, None)
            elif subject in self.shown and self.shown[subject].id == payload.get(f"{subject}Id"):
                del self.shown[subject]

    def is_overdue(self, now: float) -> bool:
        """Return whether something has ended, by the clock, and no event told the client. now: seconds since 1970."""
        ended = any(each.ends_at + GRACE_SECONDS < now for each in self.shown.values())
        return ended and time.monotonic() - self.told_at > PAUSE_SECONDS

    def differs(self, present: Present) -> bool:
        """Return whether the client shows another session, expiry or match than the database has."""
        session, match = self.shown.get("session"), self.shown.get("match")
        expires_at = present.expires_at and present.expires_at.timestamp()
        actual = (
            present.session_id and str(present.session_id),
            expires_at,
            present.match_id and str(present.match_id),
        )
        return (session and session.id, session and session.ends_at, match and match.id) != actual


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

    def remove(self, connection_id: str) -> None:
        """Forget a connection, if it is known: one that was refused is not."""
        if connection := self._by_id.pop(connection_id, None):
            theirs = self._by_member[connection.member_id]
            theirs.remove(connection)
            if not theirs:
                del self._by_member[connection.member_id]

    def of(self, member_id: str) -> list[Connection]:
        """Return the member's connections."""
        return list(self._by_member.get(member_id, ()))

    def members(self) -> list[str]:
        """Return the members who are connected."""
        return list(self._by_member)
