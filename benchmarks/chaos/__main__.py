"""Break every part, one after another and then together, under load; print what that cost, and what promise it broke.

Exits with 1 when a promise was broken.
"""

import argparse
import time

from benchmarks.chaos import rolling, zones
from benchmarks.chaos.checker import RECOVERY_SECONDS, Report, check, percentile
from benchmarks.chaos.faults import FAULTS, Fault
from benchmarks.chaos.history import History
from benchmarks.chaos.load import Load
from benchmarks.chaos.observers import GRACE_SECONDS, Phones, Probe, Subscriber
from benchmarks.chaos.stack import ROOT, Stack
from dev.embedded import stop_on_signals

FOLDER = ROOT / ".state" / "chaos"
LIMIT_SECONDS = 520.0  # after so long no new fault is begun: all is over within ten minutes
DRAIN_SECONDS = 75.0
QUICK_RECOVERY_SECONDS = 15.0  # where others take over: from then on
HEAD = (
    "| fault | operations | errors seen by clients | violations | expiries | doubled | unheard "
    "| start, p99 ms | expiry published, p99 s | recovery, s |"
)

_ROWS = """
    SELECT id::text, user_id, extract(epoch FROM started_at)::float, extract(epoch FROM expires_at)::float,
        extract(epoch FROM ended_at)::float
    FROM after_hours_sessions
"""


def main() -> int:
    """Run the programme."""
    arguments = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="a tenth of the members, a third of the time")
    arguments.add_argument("--zones", action="store_true", help="two zones, and the loss of machines")
    arguments.add_argument("--rolling", action="store_true", help="an upgrade from the release before, and back")
    arguments.add_argument("--only", action="append", metavar="FAULT")
    arguments.add_argument("--members", type=int, default=2000)
    options = arguments.parse_args()
    stop_on_signals()
    kind: type[Stack] = Stack
    known, recovery = FAULTS, RECOVERY_SECONDS
    if options.zones:
        kind, known, recovery = zones.Zones, zones.FAULTS, QUICK_RECOVERY_SECONDS
    if options.rolling:
        kind, known, recovery = rolling.Rolling, rolling.FAULTS, QUICK_RECOVERY_SECONDS
    if unknown := {*(options.only or ())} - {fault.name for fault in known}:
        arguments.error(f"unknown: {', '.join(unknown)}; known: {', '.join(fault.name for fault in known)}")
    faults = [fault for fault in known if not options.only or fault.name in options.only]
    members, hold, calm = (options.members, 8.0, 8.0) if not options.quick else (options.members // 10, 3.0, 2.0)
    began = time.monotonic()
    with kind(FOLDER, members) as stack:
        history = History(FOLDER / "history.jsonl")
        programme = Programme(stack, history, recovery)
        programme.run(faults, hold, calm)
        for stray in stack.strays:
            history.mark("stray", what=stray)
        for row in stack.query(_ROWS):
            history.write("row", **dict(zip(("id", "member", "started", "expires", "ended"), row, strict=True)))
    report = check(history.read())
    print(table(report))
    for example in report.examples:
        print(f"\n{example}")
    left_out = len(faults) - len(report.turns)
    print(f"\n{time.monotonic() - began:.0f} s; the history and the logs are in {FOLDER}", flush=True)
    if left_out:
        print(f"{left_out} faults were left out for lack of time")
    failed = {code for turn in report.turns.values() for code in turn.errors} - {"DISCONNECTED"}
    return 1 if report.violations or left_out or (options.rolling and failed) else 0


class Programme:
    """The faults, one after another, under one load."""

    def __init__(self, stack: Stack, history: History, recovery_seconds: float) -> None:
        self._stack, self._history, self._recovery_seconds = stack, history, recovery_seconds
        self._load = Load(history, stack.api_ports, stack.tokens)
        self._subscriber = Subscriber(stack, history)
        self._phones = Phones(stack, history)
        self._probe = Probe(stack, history, self._subscriber, self._phones)

    def run(self, faults: list[Fault], hold: float, calm: float) -> None:
        """Break and heal, then wait until all sessions are over."""
        end = time.monotonic() + LIMIT_SECONDS
        parts = (self._subscriber, self._phones, self._probe, self._load)
        for part in parts:
            part.start()
        try:
            for number, fault in enumerate(faults):
                if time.monotonic() < end:
                    self._history.mark("phase", fault=fault.name, lasts=fault.lasts, may_double=fault.may_double)
                    time.sleep(calm if number else 15)  # until the first sessions run out
                    self._turn(fault, hold)
            time.sleep(calm)
        finally:
            self._load.stop()
            self._drain()
            self._probe.stop()
            self._subscriber.stop()
            self._phones.stop()

    def _turn(self, fault: Fault, hold: float) -> None:
        print(f"{fault.name}: ", end="", flush=True)
        self._history.mark("faulty", fault=fault.name)
        with fault.inject(self._stack):
            time.sleep(hold if fault.lasts else 0)
        healed = self._history.mark("healed", fault=fault.name)
        seconds = self._recovery(healed)
        self._history.mark("recovered", fault=fault.name, seconds=seconds)
        print(
            "not recovered" if seconds is None else f"recovered after {seconds:.1f} s",
            self._probe.last or "",
            flush=True,
        )

    def _recovery(self, healed: float) -> float | None:
        """Wait until all is well for as long as lateness may go unnoticed, and return since when it is."""
        since: float | None = None
        while time.time() < healed + self._recovery_seconds + GRACE_SECONDS:
            time.sleep(0.1)
            look, now = self._probe.last, time.time()
            answered, failed = self._load.answers_since(max(healed, now - 0.5))
            if failed or look is None or look.at < healed or look.missing or look.overdue or look.unpublished:
                since = None
            elif answered:
                since = since or look.at
                if now - since > GRACE_SECONDS + 1:
                    return since - healed
        return None

    def _drain(self) -> None:
        end = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < end:
            active = self._stack.query("SELECT count(*) FROM after_hours_sessions WHERE ended_at IS NULL")[0][0]
            look = self._probe.last
            if not active and look and not look.unpublished:
                time.sleep(GRACE_SECONDS)  # for an event that is published twice
                return
            time.sleep(0.5)


def table(report: Report) -> str:
    """Return the report as a Markdown table."""
    lines = [HEAD, "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for fault, turn in report.turns.items():
        start, delay = percentile(turn.starts, 99), percentile(turn.delays, 99)
        cells = [
            fault,
            turn.operations,
            ", ".join(f"{code} × {count}" for code, count in sorted(turn.errors.items())) or "0",
            ", ".join(f"{kind} × {count}" for kind, count in sorted(turn.violations.items())) or "0",
            turn.ran_out,
            turn.doubled,
            turn.unheard,
            "–" if start is None else f"{start * 1000:.0f}",
            "–" if delay is None else f"{delay:.1f}",
            "–" if turn.recovery is None else f"{turn.recovery:.1f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
