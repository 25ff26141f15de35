"""Reads a history and counts what was promised and not kept. It knows the promises, and nothing of the service.

A request takes effect at one moment between its invocation and its completion, if it was acknowledged; perhaps, and
perhaps later, if it was not answered, or with a 5xx that does not rule it out. An answer is a violation only if no
moment of its interval could have given it.
"""

import bisect
import collections
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

ACTIVE_TOO_LONG = "active after its end"
ENDED_EARLY = "ended early"
TWO_ACTIVE = "two active"
LOST = "acknowledged, not there"
UNASKED = "there, not asked for"
WRONG_END = "ended_at ≠ expires_at"
TIMER_MISSING = "timer missing"
NOT_RECOVERED = "not recovered"
EVENT_MISSING = "expiry event missing"
EVENT_DOUBLED = "expiry event doubled"
EVENT_FALSE = "expiry event false"
MATCHED_TWICE = "in two live matches"
OUTLIVES = "match outlives a session"
TOLD_FALSE = "client shows what is not so"
STRAY = "stored on a demoted server"
BAD_ANSWER = "wrong answer, 500 or hang"

RECOVERY_SECONDS = 60.0
TOLD_SECONDS = 15.0  # after which every connected client shows the truth, from the change or from the end of a fault
HANG_SECONDS = 10.0
LAPSE_SECONDS = 2.0  # a shared timer is taken away for a moment when one who shares it leaves
EXAMPLES = 2  # reported of each kind and turn
EXPECTED = {"start": {201, 409}, "extend": {200, 404}, "end": {200, 404}, "status": {200}}
NOT_DONE = {"REFUSED", "AUTH_UNAVAILABLE"}  # codes of failures that say that nothing was done
Line = Mapping[str, Any]


class Row(NamedTuple):
    """A session as the database has it in the end; moments in seconds since the epoch."""

    id: str
    member: str
    started: float
    expires: float
    ended: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """A request and its answer; `status` is None when none came."""

    op: str
    member: str
    invoked: float
    completed: float
    status: int | None
    minutes: int | None = None
    code: str | None = None
    retry_after: bool = False
    body: Mapping[str, Any] | None = None

    @property
    def session(self) -> Mapping[str, Any]:
        """The session in the answer, or an empty mapping."""
        return (self.body or {}).get("session") or {}

    @property
    def is_done(self) -> bool:
        """Whether it was acknowledged."""
        return self.status in {200, 201}

    @property
    def is_unknown(self) -> bool:
        """Whether it may have been done, without its client knowing."""
        return (self.status is None or self.status >= 500) and self.code not in NOT_DONE

    def ends(self, session: str) -> bool:
        """Return whether this, the end of some session, is or may be the end of that one."""
        return self.is_unknown or self.session["id"] == session

    @property
    def claim(self) -> tuple[str, float] | None:
        """The session that the answer says is active, and its expiry."""
        active = self.status in {200, 201} and self.op != "end" and self.session
        if active or (self.status == 409 and self.session):
            return self.session["id"], epoch(self.session["expiresAt"])
        return None

    @property
    def denies(self) -> bool:
        """Whether the answer says that no session is active."""
        return (self.op == "status" and self.status == 200 and not self.session) or self.status == 404


@dataclass(slots=True)
class Turn:
    """What came of one fault's turn."""

    operations: int = 0
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    violations: collections.Counter[str] = field(default_factory=collections.Counter)
    ran_out: int = 0  # sessions
    doubled: int = 0  # of them published more than once
    unheard: int = 0  # of them never heard by the subscriber, which was disconnected in that turn
    starts: list[float] = field(default_factory=list)  # seconds of each, from the second second of a lasting fault
    delays: list[float] = field(default_factory=list)  # seconds from each expiry to its event
    recovery: float | None = None  # seconds


@dataclass(slots=True)
class Report:
    """The turns by fault, in their order, and an example or two of each violation."""

    turns: dict[str, Turn]
    examples: list[str] = field(default_factory=list)

    @property
    def violations(self) -> collections.Counter[str]:
        """All violations by kind."""
        return sum((turn.violations for turn in self.turns.values()), collections.Counter[str]())


def check(history: Iterable[Line]) -> Report:
    """Judge a history; a minute of it has one second."""
    return _Checker(history).run()


class _Checker:
    def __init__(self, history: Iterable[Line]) -> None:
        self.lines = collections.defaultdict[str, list[dict[str, Any]]](list)
        for line in history:
            self.lines[line["kind"]].append({name: value for name, value in line.items() if name != "kind"})
        self.rows = {line["id"]: Row(**line) for line in self.lines["row"]}
        self.members: dict[str, tuple[list[Op], list[Row]]] = collections.defaultdict(lambda: ([], []))
        for op in sorted((Op(**line) for line in self.lines["op"]), key=lambda op: op.invoked):
            self.members[op.member][0].append(op)
        for row in sorted(self.rows.values(), key=lambda row: row.started):
            self.members[row.member][1].append(row)
        self.begins = [line["at"] for line in self.lines["phase"]]
        healed = {line["fault"]: line["at"] for line in self.lines["healed"]}
        self.spans: dict[str, tuple[float, float]] = {
            line["fault"]: (line["at"], healed[line["fault"]]) for line in self.lines["faulty"]
        }
        self.report = Report({line["fault"]: Turn() for line in self.lines["phase"]})

    def run(self) -> Report:
        for line in self.lines["recovered"]:
            self._turn(line["at"]).recovery = line["seconds"]
            if line["seconds"] is None:
                self._violation(NOT_RECOVERED, line["at"], f"within {RECOVERY_SECONDS:.0f} s")
        for ops, rows in self.members.values():
            for op in ops:
                self._count(op)
                self._check_answer(op)
            self._check_sequence(ops)
            for row in rows:
                self._check_extent(row, ops)
                self._check_end(row, ops)
            self._check_overlaps(ops, rows)
        self._check_events()
        self._check_timers()
        self._check_told()
        for line in self.lines["stray"]:
            self._violation(STRAY, line["at"], line["what"])
        for look in self.lines["probe"]:
            for kind, found in ((MATCHED_TWICE, look.get("twice")), (OUTLIVES, look.get("outliving"))):
                if found:
                    self._violation(kind, look["at"], found)
        return self.report

    def _turn(self, moment: float) -> Turn:
        return self.report.turns[self._phase(moment)["fault"]]

    def _phase(self, moment: float) -> Line:
        return self.lines["phase"][max(0, bisect.bisect_right(self.begins, moment) - 1)]

    def _violation(self, kind: str, moment: float, what: object) -> None:
        turn = self._turn(moment)
        turn.violations[kind] += 1
        if turn.violations[kind] <= EXAMPLES:
            self.report.examples.append(f"{self._phase(moment)['fault']}: {kind}, {moment:.3f}: {what}")

    def _count(self, op: Op) -> None:
        """Count a request, and judge its manners: no 500, no 503 without Retry-After, no hang."""
        turn = self._turn(op.invoked)
        turn.operations += 1
        if op.op == "start" and op.is_done and self._is_at_full_length(op.invoked):
            turn.starts.append(op.completed - op.invoked)
        good = op.status in EXPECTED[op.op] or (op.status == 503 and op.retry_after) or op.status is None
        if op.status not in EXPECTED[op.op]:
            turn.errors[" ".join(str(part) for part in (op.status, op.code) if part)] += 1
        if not good or op.completed - op.invoked >= HANG_SECONDS:
            self._violation(BAD_ANSWER, op.invoked, op)

    def _is_at_full_length(self, moment: float) -> bool:
        """Return whether a fault that lasts has done so for a second; a turn without one is all alike."""
        phase = self._phase(moment)
        begin, end = self.spans[phase["fault"]]
        return not phase["lasts"] or begin + 1 <= moment <= end

    def _check_answer(self, op: Op) -> None:
        """Judge an answer by itself, and by the final row of its session."""
        if not op.session:
            return
        row = self.rows.get(op.session["id"])
        if row is None or row.member != op.member:
            self._violation(LOST, op.invoked, op)
            return
        if op.op == "end" and (row.ended is None or abs(row.ended - epoch(op.session["endedAt"])) > 0.002):
            self._violation(LOST, op.invoked, (op, row))
        if op.claim:
            _, expires = op.claim
            # What the extension extended had to be active itself.
            before = expires - (op.minutes or 0) if op.op == "extend" else expires
            if op.invoked >= before or op.session.get("remainingSeconds", 0) > expires - op.invoked:
                self._violation(ACTIVE_TOO_LONG, op.invoked, op)
            if expires > row.expires:
                self._violation(LOST, op.invoked, (op, row))

    def _check_sequence(self, ops: Sequence[Op]) -> None:
        """Judge each answer of a member by those that were there before it was asked for."""
        ends = [op for op in ops if op.op == "end" and (op.is_done or op.is_unknown)]
        answers = [op for op in ops if op.claim or op.denies]
        for earlier, op in itertools.permutations(answers, 2):
            if earlier.claim is None or earlier.completed > op.invoked or earlier.claim[1] <= op.completed:
                continue
            session = earlier.claim[0]
            if any(
                earlier.invoked <= _latest(end) and end.invoked <= op.completed and end.ends(session) for end in ends
            ):
                continue
            if op.claim and op.claim[0] != session:
                self._violation(TWO_ACTIVE, op.invoked, (earlier, op))
            if op.denies:
                self._violation(LOST, op.invoked, (earlier, op))
        for end, op in itertools.product(ends, answers):
            if end.is_done and end.completed < op.invoked and op.claim and op.claim[0] == end.session["id"]:
                self._violation(ACTIVE_TOO_LONG, op.invoked, (end, op))

    def _check_extent(self, row: Row, ops: Sequence[Op]) -> None:
        """Judge how long a session was: as started, plus every confirmed extension, and no other."""
        started = [op for op in ops if op.op == "start" and op.is_done and op.session["id"] == row.id]
        if len(started) > 1:
            self._violation(TWO_ACTIVE, row.started, (row, started))
        asked = started or [
            op for op in ops if op.op == "start" and op.is_unknown and op.invoked <= row.started <= _latest(op)
        ]
        if not asked:
            self._violation(UNASKED, row.started, row)
            return
        extensions = [op for op in ops if op.op == "extend"]
        confirmed = sum(op.minutes or 0 for op in extensions if op.is_done and op.session["id"] == row.id)
        perhaps = [
            op.minutes or 0
            for op in extensions
            if op.is_unknown and op.invoked < row.expires and _latest(op) > row.started
        ]
        sums = {0}
        for minutes in perhaps:
            sums |= {total + minutes for total in sums}
        extras = {row.expires - math.ceil(round(row.started + (op.minutes or 0), 6)) - confirmed for op in asked}
        if not extras & sums:
            self._violation(LOST if max(extras) < 0 else UNASKED, row.started, row)

    def _check_end(self, row: Row, ops: Sequence[Op]) -> None:
        """Judge when, and by whom, a session was ended."""
        if row.ended is None or row.ended > row.expires:
            self._violation(WRONG_END, row.expires, row)
        elif row.ended < row.expires and not any(
            op.op == "end" and (op.is_done or op.is_unknown) and op.invoked <= row.ended <= _latest(op) for op in ops
        ):
            self._violation(ENDED_EARLY, row.ended, row)

    def _check_overlaps(self, ops: Sequence[Op], rows: Sequence[Row]) -> None:
        """Judge a member's sessions, oldest first: one ends before the next is acknowledged."""
        acknowledged = {op.session["id"]: op.completed for op in ops if op.op == "start" and op.is_done}
        for one, other in itertools.pairwise(rows):
            begin = acknowledged.get(other.id, other.started + HANG_SECONDS)
            if (one.expires if one.ended is None else one.ended) > begin:
                self._violation(TWO_ACTIVE, other.started, (one, other))

    def _check_events(self) -> None:
        """Judge the expiry events: one for each session that ran out, none for another, none too soon."""
        heard = collections.defaultdict[str, list[float]](list)
        for event in self.lines["event"]:
            if event["type"] == "after_hours:session_expired":
                heard[event["payload"]["sessionId"]].append(event["at"])
        for session, moments in heard.items():
            row = self.rows.get(session)
            if row is None or row.ended != row.expires or moments[0] < row.expires:
                self._violation(EVENT_FALSE, moments[0], (session, row))
        for row in self.rows.values():
            if row.ended == row.expires:
                self._check_published(row, heard[row.id])

    def _check_published(self, row: Row, moments: Sequence[float]) -> None:
        turn, phase = self._turn(row.expires), self._phase(row.expires)
        next_begin = next((begin for begin in self.begins if begin > row.expires), math.inf)
        turn.ran_out += 1
        if moments:
            turn.delays.append(moments[0] - row.expires)
        elif self._was_deaf(row.expires, next_begin):
            turn.unheard += 1
        else:
            self._violation(EVENT_MISSING, row.expires, row)
        if len(moments) > 1:
            turn.doubled += 1
            if not phase["may_double"]:
                self._violation(EVENT_DOUBLED, row.expires, (row, moments))

    def _was_deaf(self, begin: float, end: float) -> bool:
        """Return whether the subscriber was disconnected at some moment between the two."""
        lost = [line["at"] for line in self.lines["subscriber"] if not line["connected"]]
        found = [line["at"] for line in self.lines["subscriber"] if line["connected"]]
        return any(
            gone < end and back > begin for gone, back in itertools.zip_longest(lost, found[1:], fillvalue=math.inf)
        )

    def _check_timers(self) -> None:
        """Judge the looks at the timers: none may lack for long while all is well, nor 60 s after a fault."""
        marks = [(line["at"], kind) for kind in ("faulty", "healed", "recovered") for line in self.lines[kind]]
        calm: list[tuple[float, float]] = []
        since = self.begins[0]
        for at, kind in sorted(marks):
            if kind == "faulty":
                calm.append((since, at))
                since = math.inf
            else:
                since = at + RECOVERY_SECONDS if kind == "healed" else min(at, since)
        calm.append((since, math.inf))
        since_when: dict[int, float] = {}
        for look in self.lines["probe"]:
            is_calm = any(begin <= look["at"] <= end for begin, end in calm)
            missing = look["missing"] if is_calm else []
            since_when = {second: since_when.get(second, look["at"]) for second in missing}
            for second, moment in since_when.items():
                if look["at"] - moment >= LAPSE_SECONDS:
                    self._violation(TIMER_MISSING, moment, second)
                    since_when[second] = math.inf  # reported once

    def _check_told(self) -> None:
        """Judge what connected clients show: no other session than the member has, for long, unless a fault lasts."""
        faulty = [line["at"] for line in self.lines["faulty"]]
        healed = [line["at"] for line in self.lines["healed"]]
        spans = list(itertools.zip_longest(faulty, healed, fillvalue=math.inf))
        since_when: dict[str, float] = {}
        for look in self.lines["probe"]:
            at = look["at"]
            if any(begin <= at <= end for begin, end in spans):
                since_when = {}
                continue
            since_when = {member: since_when.get(member, at) for member in look.get("untold", ())}
            for member, moment in since_when.items():
                if at - moment > TOLD_SECONDS:
                    self._violation(TOLD_FALSE, moment, member)
                    since_when[member] = math.inf  # reported once


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Return a percentile; None of too few values to have one."""
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else None


def epoch(moment: str) -> float:
    """Return the seconds since the epoch of an ISO 8601 moment."""
    return datetime.fromisoformat(moment).timestamp()


def _latest(op: Op) -> float:
    """Return until when a request may take effect: without an answer, the server may still be at it."""
    return op.completed if op.is_done else op.completed + HANG_SECONDS
