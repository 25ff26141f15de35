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
    """Show who waits and for how long, what is late, and the last round."""
    census, runs = queries.census(), recorded_runs(current_redis())
    last = runs.get("round", Run())
    matched = census.searching - census.waiting
    found: dict[str, Any] = {
        "enabled": current_settings().matching_enabled,
        **census._asdict(),
        "median_seconds": round(census.median_seconds, 1),
        "longest_seconds": round(census.longest_seconds, 1),
        "matched_share": round(matched / census.searching, 3) if census.searching else None,
        "last_round": _moment(last),
        "last_round_claimed": last.last_rows.get("claimed"),
        "last_round_matched": last.last_rows.get("matched"),
        "last_round_seconds": None if last.last_seconds is None else round(last.last_seconds, 3),
        "last_look": _moment(runs.get("matching", Run())),
    }
    if as_json:
        console.write_json(found)
    else:
        console.write_facts({name.replace("_", " "): value for name, value in found.items()})


@matching.command("look")
@console.as_json
def look(as_json: bool) -> None:
    """Find what no timer tells of, and do what is due; safe at any time."""
    if not current_settings().matching_enabled:
        raise click.ClickException("matching is switched off (MATCHING_ENABLED)")
    counts = rounds.look()
    while rounds.do_what_is_due():
        pass
    (console.write_json if as_json else console.write_facts)(counts)


def _moment(run: Run) -> datetime | None:
    return datetime.fromtimestamp(run.finished_at, UTC) if run.finished_at is not None else None
