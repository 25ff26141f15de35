"""The checker of `make chaos` finds each broken promise in a doctored history, and none in an honest one."""

from datetime import UTC, datetime
from typing import Any

import pytest

from benchmarks.chaos import checker
from benchmarks.chaos.checker import check

T = 1_800_000_000.0  # a session of 15 s starts half a second later
MARKS: list[dict[str, Any]] = [
    {"kind": "phase", "at": T - 10, "fault": "calm", "lasts": False, "may_double": False},
    {"kind": "faulty", "at": T - 9, "fault": "calm"},
    {"kind": "healed", "at": T - 9, "fault": "calm"},
    {"kind": "recovered", "at": T - 9, "fault": "calm", "seconds": 0.0},
    {"kind": "subscriber", "at": T - 10, "connected": True},
    {"kind": "end", "at": T + 200},
]


def iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def op(name: str, at: float, status: int | None = None, session: Any = None, **others: Any) -> dict[str, Any]:
    """Return a request of 0.2 s, invoked at T + `at`."""
    line = {"kind": "op", "op": name, "member": "m", "invoked": T + at, "completed": T + at + 0.2, "status": status}
    minutes = 15 if name in {"start", "extend"} else None
    body = {"success": True, "session": session}
    return {**line, "minutes": minutes, "code": None, "retry_after": False, "body": body, **others}


def session(expires: float, session_id: str = "s") -> dict[str, Any]:
    return {"id": session_id, "expiresAt": iso(T + expires)}


def ended(at: float, session_id: str = "s") -> dict[str, Any]:
    return {"id": session_id, "endedAt": iso(T + at)}


def row(started: float, expires: float, ended: float | None, session_id: str = "s") -> dict[str, Any]:
    end = None if ended is None else T + ended
    line = {"kind": "row", "id": session_id, "member": "m"}
    return {**line, "started": T + started, "expires": T + expires, "ended": end}


def told(at: float, session_id: str = "s") -> dict[str, Any]:
    payload = {"sessionId": session_id, "reason": "timeout"}
    return {"kind": "event", "at": T + at, "type": "after_hours:session_expired", "member": "m", "payload": payload}


START = op("start", 0.4, 201, session(16))
ROW = row(0.5, 16, 16)
TOLD = told(16.1)
EXTEND = op("extend", 5, 200, session(31))
HONEST: dict[str, list[dict[str, Any]]] = {
    "it ran out": [START, ROW, TOLD],
    "it was seen": [START, op("status", 5, 200, session(16)), op("status", 16, 200), ROW, TOLD],
    "seen as it ran out": [START, op("status", 15.9, 200, session(16)), op("end", 15.9, 404), ROW, TOLD],
    "it was extended": [START, EXTEND, row(0.5, 31, 31), told(31.1)],
    "an extension without an answer was made": [START, op("extend", 5, code="TIMEOUT"), row(0.5, 31, 31), told(31.1)],
    "an extension without an answer was not made": [START, op("extend", 5, code="TIMEOUT"), ROW, TOLD],
    "it was ended": [START, op("end", 5, 200, ended(5.1)), op("status", 6, 200), row(0.5, 16, 5.1)],
    "an end without an answer": [START, op("end", 5, 503, retry_after=True), op("status", 6, 200), row(0.5, 16, 5.1)],
    "a start without an answer": [op("start", 0.4, code="DISCONNECTED"), ROW, TOLD],
    "one after the other": [
        *(START, op("end", 5, 200, ended(5.1)), row(0.5, 16, 5.1)),
        *(op("start", 5.1, 201, session(21, "t")), row(5.05, 21, 21, "t"), told(21.1, "t")),
    ],
}
BROKEN: list[tuple[str, list[dict[str, Any]]]] = [
    (checker.ACTIVE_TOO_LONG, [START, op("status", 16.1, 200, session(16)), ROW, TOLD]),
    (checker.ACTIVE_TOO_LONG, [START, op("start", 16.1, 409, session(16)), ROW, TOLD]),
    (checker.ACTIVE_TOO_LONG, [START, op("extend", 16.1, 200, session(31)), row(0.5, 31, 31), told(31.1)]),
    (checker.ACTIVE_TOO_LONG, [START, op("status", 5, 200, {**session(16), "remainingSeconds": 12}), ROW, TOLD]),
    (
        checker.ACTIVE_TOO_LONG,
        [START, op("end", 5, 200, ended(5.1)), op("status", 6, 200, session(16)), row(0.5, 16, 5.1)],
    ),
    (checker.ENDED_EARLY, [START, row(0.5, 16, 12)]),
    (checker.ENDED_EARLY, [START, op("end", 13, code="TIMEOUT"), row(0.5, 16, 12)]),
    (checker.ENDED_EARLY, [START, op("end", 11, code="REFUSED"), row(0.5, 16, 12)]),
    (
        checker.TWO_ACTIVE,
        [START, ROW, TOLD, op("start", 5, 201, session(21, "t")), row(5.1, 21, 21, "t"), told(22, "t")],
    ),
    (checker.TWO_ACTIVE, [START, op("start", 0.4, 201, session(16)), ROW, TOLD]),
    (checker.LOST, [START]),
    (checker.LOST, [START, EXTEND, ROW, TOLD]),
    (checker.LOST, [START, EXTEND, op("extend", 5, 200, session(31)), row(0.5, 31, 31), told(31.1)]),
    (checker.LOST, [START, op("end", 5, 200, ended(5.1)), ROW, TOLD]),
    (checker.LOST, [START, op("status", 5, 200), ROW, TOLD]),
    (checker.LOST, [START, op("extend", 5, 404), ROW, TOLD]),
    (checker.UNASKED, [ROW, TOLD]),
    (checker.UNASKED, [op("start", 0.4, code="REFUSED"), ROW, TOLD]),
    (checker.UNASKED, [START, EXTEND, row(0.5, 46, 46), told(46.1)]),
    (checker.WRONG_END, [START, row(0.5, 16, 17)]),
    (checker.WRONG_END, [START, row(0.5, 16, None)]),
    (checker.MATCHED_TWICE, [{"kind": "probe", "at": T + 1, "missing": [], "twice": 2, "outliving": 0}]),
    (checker.OUTLIVES, [{"kind": "probe", "at": T + 1, "missing": [], "twice": 0, "outliving": 1}]),
    (checker.TIMER_MISSING, [{"kind": "probe", "at": T + at, "missing": [int(T) + 16]} for at in (1.0, 2.0, 3.0)]),
    (checker.TOLD_FALSE, [{"kind": "probe", "at": T + at, "missing": [], "untold": ["m"]} for at in (1.0, 9.0, 16.5)]),
    (checker.NOT_RECOVERED, [{"kind": "recovered", "at": T + 60, "fault": "calm", "seconds": None}]),
    (checker.EVENT_MISSING, [START, ROW]),
    (checker.EVENT_DOUBLED, [START, ROW, TOLD, told(26.1)]),
    (checker.EVENT_FALSE, [START, ROW, told(15.9)]),
    (checker.EVENT_FALSE, [START, op("end", 5, 200, ended(5.1)), row(0.5, 16, 5.1), TOLD]),
    (checker.BAD_ANSWER, [op("status", 5, 500)]),
    (checker.BAD_ANSWER, [op("status", 5, 503)]),
    (checker.BAD_ANSWER, [op("status", 5, 403)]),
    (checker.BAD_ANSWER, [op("status", 5, 200, completed=T + 15.1)]),
]


@pytest.mark.parametrize("lines", HONEST.values(), ids=HONEST.keys())
def test_an_honest_history_has_no_violation(lines: list[dict[str, Any]]) -> None:
    assert not check([*MARKS, *lines]).examples


@pytest.mark.parametrize(("kind", "lines"), BROKEN)
def test_a_doctored_history_is_seen_through(kind: str, lines: list[dict[str, Any]]) -> None:
    report = check([*MARKS, *lines])
    assert report.violations[kind] >= 1, report.examples
    assert report.turns["calm"].violations == report.violations


def test_errors_and_times_are_counted() -> None:
    lines = [
        START,
        ROW,
        TOLD,
        op("status", 5, 503, code="AUTH_UNAVAILABLE", retry_after=True),
        op("end", 6, code="REFUSED"),
    ]
    turn = check([*MARKS, *lines]).turns["calm"]
    assert (turn.operations, turn.errors) == (3, {"503 AUTH_UNAVAILABLE": 1, "REFUSED": 1})
    assert turn.starts == [pytest.approx(0.2)]
    assert turn.delays == [pytest.approx(0.1)]


def test_an_event_of_a_time_in_which_the_subscriber_was_away_is_unheard() -> None:
    away = [{"kind": "subscriber", "at": T + at, "connected": back} for at, back in ((15, False), (17, True))]
    report = check([*MARKS, *away, START, ROW])
    assert not report.violations
    assert report.turns["calm"].unheard == 1


def test_a_timer_may_lack_while_a_fault_lasts_but_not_a_minute_after_it() -> None:
    marks = [{"kind": "faulty", "at": T, "fault": "calm"}, {"kind": "healed", "at": T + 5, "fault": "calm"}]
    looks = [{"kind": "probe", "at": T + at, "missing": [int(T) + 100]} for at in (1, 3, 6, 8, 66, 67, 68, 69)]
    assert check([*MARKS, *marks, *looks]).violations == {checker.TIMER_MISSING: 1}
