"""The `flask after-hours` commands."""

from datetime import UTC, datetime

import click

from afterhours_service import console
from afterhours_service.cleanup.cli import cleanup
from afterhours_service.config import current_settings
from afterhours_service.matching.cli import matching
from afterhours_service.monitoring import health
from afterhours_service.monitoring.status import current_status
from afterhours_service.rights.cli import members
from afterhours_service.sessions.cli import reconcile, sessions, timers
from afterhours_service.web import gate

after_hours = console.Commands("after-hours", help="Operate the service.")
for _command in (cleanup, matching, members, reconcile, sessions, timers):
    after_hours.add_command(_command)


@after_hours.command("status")
@console.as_json
def status(as_json: bool) -> None:
    """Show the state of the service on one screen."""
    now = current_status()
    if as_json:
        console.write_json(now.as_dict())
        return
    finished = {
        job: datetime.fromtimestamp(run.finished_at, UTC)
        for job, run in now.runs.items()
        if run.finished_at is not None
    }
    census, search = now.sessions, now.search
    console.write_facts(
        {
            **now.health._asdict(),
            "workers": len(now.workers),
            **{f"  {worker['name']}": f"{worker['state']} ({worker['queues']})" for worker in now.workers},
            "active scheduler": now.scheduler,
            **{f"waiting in {queue}": jobs for queue, jobs in now.queues.items()},
            "timers armed": now.timers,
            "active sessions": census and census.active,
            "waiting for a match": search and f"{search.waiting} of {search.searching} live members",
            "overdue sessions": census and f"{census.overdue} (oldest: {census.overdue_seconds:.0f} s)",
            "last reconciliation": finished.get("reconcile"),
            "last look of matching": finished.get("matching"),
            "last cleanup": finished.get("cleanup"),
        }
    )


@after_hours.command("check")
@click.pass_context
def check(context: click.Context) -> None:
    """Check settings and connections; exit with 0 (ok), 1 (cannot serve) or 2 (only Redis is away)."""
    found = health.check()
    console.write_facts({"settings": "ok", **found._asdict()})
    if not found.is_ready:
        context.exit(1)
    context.exit(0 if found.redis == "ok" else 2)


@after_hours.command("token")
@console.member
@click.option("--seconds", type=click.IntRange(min=1), default=3600, show_default=True, help="How long it is valid.")
def token(user: str, seconds: int) -> None:
    """Print a token for USER, as the host's auth service would issue it; in development only."""
    settings = current_settings()
    if settings.production:
        raise click.ClickException("not available if APP_ENV is production")
    if settings.jwt_algorithm != "HS256":
        raise click.ClickException("only available with JWT_SECRET: a public key cannot sign tokens")
    click.echo(gate.token_for(user, settings, seconds))
