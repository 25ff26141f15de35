"""The operator's commands for sessions and their timers."""

from datetime import UTC, datetime
from typing import Any

import click
from flask.cli import AppGroup, with_appcontext

from afterhours_service import console
from afterhours_service.sessions import deadlines, rules, service
from afterhours_service.sessions.queries import Session
from afterhours_service.web.errors import NoActiveSession


@click.group("sessions", cls=AppGroup, invoke_without_command=True)
@click.pass_context
def sessions(context: click.Context) -> None:
    """List the active sessions (without a command), show, extend or end one."""
    if context.invoked_subcommand is None:
        context.invoke(list_sessions)


@sessions.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most this many.")
@console.as_json
def list_sessions(limit: int, as_json: bool) -> None:
    """List the active sessions, the next to expire first, without their places."""
    rows = service.list_active(limit)
    if as_json:
        console.write_json([_as_dict(session) for session in rows])
        return
    console.write_table(
        ["USER", "EXPIRES", "LEFT", "SESSION"],
        [(session.user_id, session.expires_at, f"{session.remaining_seconds} s", session.id) for session in rows],
    )


@sessions.command("show")
@console.member
@console.as_json
def show_session(user: str, as_json: bool) -> None:
    """Show the active session of USER, without its place."""
    session = service.status(user)
    if session is None:
        raise _none_active(user)
    _write(session, as_json)


@sessions.command("extend")
@console.member
@click.argument("minutes", type=click.Choice([str(minutes) for minutes in rules.DURATIONS_MINUTES]))
@console.as_json
def extend_session(user: str, minutes: str, as_json: bool) -> None:
    """Extend the active session of USER by MINUTES."""
    try:
        session = service.extend(user, int(minutes)).session
    except NoActiveSession as error:
        raise _none_active(user) from error
    _write(session, as_json)


@sessions.command("end")
@console.member
@console.yes
def end_session(user: str, yes: bool) -> None:
    """End the active session of USER now."""
    if service.status(user) is None:
        raise _none_active(user)
    if not yes:
        console.confirm(f"End the session of {user}?")
    try:
        session = service.end(user, reason="operator")
    except NoActiveSession as error:
        raise _none_active(user) from error
    click.echo(f"ended {session.id}")


@click.command("reconcile")
@console.as_json
@with_appcontext
def reconcile(as_json: bool) -> None:
    """Run the reconciliation now, as every minute: end overdue sessions, arm missing timers."""
    counts = service.reconcile()
    (console.write_json if as_json else console.write_facts)(counts)


@click.command("timers")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="List at most this many missing timers."
)
@console.as_json
@with_appcontext
def timers(limit: int, as_json: bool) -> None:
    """Compare the armed timers with those that the active sessions need.

    Missing timers are armed within a minute, or by `reconcile`. Surplus timers do no harm.
    """
    found = deadlines.compare()
    counts = {**found._asdict(), "missing": len(found.missing)}
    if as_json:
        console.write_json({**counts, "missingSeconds": found.missing[:limit]})
        return
    console.write_facts(counts)
    for second in found.missing[:limit]:
        click.echo(f"missing: {datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%SZ}")


def _as_dict(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "userId": session.user_id,
        "startedAt": session.started_at,
        "expiresAt": session.expires_at,
        "remainingSeconds": session.remaining_seconds,
    }


def _write(session: Session, as_json: bool) -> None:
    (console.write_json if as_json else console.write_facts)(_as_dict(session))


def _none_active(user: str) -> click.ClickException:
    return click.ClickException(f"no session of {user} is active")
