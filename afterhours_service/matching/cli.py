"""The operator's commands for matching."""

from datetime import UTC, datetime
from typing import Any

import click
from flask.cli import AppGroup

from afterhours_service import console
from afterhours_service.config import current_settings
from afterhours_service.jobs.runs import Run, recorded_runs
from afterhours_service.matching import queries, rounds
from afterhours_service.stores.redis import current_redis


@click.group("matching", cls=AppGroup)
def matching() -> None:
    """Show how matching goes, or do now what a worker would do."""


@matching.command("status")
@console.as_json
def status(as_json: bool) -> None:
    """Show who waits, for how long, and the last round."""
    census, runs = queries.census(), recorded_runs(current_redis())
    last = runs.get("round", Run())
    matched = census.searching - census.waiting
    found: dict[str, Any] = {
        "enabled": current_settings().matching_enabled,
        **census._asdict(),
        "matched_share": round(matched / census.searching, 3) if census.searching else None,
        "last_round": _moment(last),
        "rounds": last.finished,
        "mean_round_seconds": round(last.seconds / last.finished, 3) if last.finished else None,
        "members_matched": last.rows.get("matched", 0),
        "last_look": _moment(runs.get("matching", Run())),
    }
    if as_json:
        console.write_json(found)
    else:
        console.write_facts({name.replace("_", " "): value for name, value in found.items()})


@matching.command("look")
def look() -> None:
    """Find what no timer tells of, and do what is due; safe at any time."""
    counts = rounds.look()
    while rounds.do_what_is_due():
        pass
    console.write_facts(counts)


def _moment(run: Run) -> datetime | None:
    return datetime.fromtimestamp(run.finished_at, UTC) if run.finished_at is not None else None
