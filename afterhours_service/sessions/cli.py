"""Sessions for the operator."""

import click
from flask.cli import AppGroup

from afterhours_service.errors import NoActiveSession
from afterhours_service.schemas import isoformat
from afterhours_service.sessions import service


@click.group("sessions", cls=AppGroup, invoke_without_command=True)
@click.pass_context
def sessions(context: click.Context) -> None:
    """List the active sessions (without a command), or end one."""
    if context.invoked_subcommand is None:
        context.invoke(list_sessions)


@sessions.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="How many at the most.")
def list_sessions(limit: int) -> None:
    """List the active sessions, the next to expire first; never where they are."""
    rows = service.list_active(limit)
    click.echo(f"{'USER':<36}  {'EXPIRES':<24}  {'LEFT':>8}  SESSION")
    for session in rows:
        expires, left = isoformat(session.expires_at), session.remaining_seconds
        click.echo(f"{session.user_id:<36}  {expires:<24}  {left:>6} s  {session.id}")


@sessions.command("end")
@click.argument("user")
def end_session(user: str) -> None:
    """End the active session of USER now."""
    try:
        session = service.end(user, reason="operator")
    except NoActiveSession as error:
        raise click.ClickException(f"no session of {user} is active") from error
    click.echo(f"ended {session.id}")
