"""Members' rights, for the operator who answers a written request."""

import click
from flask.cli import AppGroup

from afterhours_service import console
from afterhours_service.rights import service
from afterhours_service.web.errors import VerificationRequired

members = AppGroup("members", help="Export or erase a member's data on request.")


@members.command("export")
@console.member
def export_member(user: str) -> None:
    """Write all data that is held on USER, as JSON."""
    _check_known(user)
    for piece in service.export(user):
        click.echo(piece, nl=False)
    click.echo()


@members.command("erase")
@console.member
@console.yes
def erase_member(user: str, yes: bool) -> None:
    """Erase all data that is held on USER, photos too, and end their session; the host's rows stay."""
    _check_known(user)
    if not yes:
        console.confirm(f"Erase everything that After Hours holds on {user}? This cannot be undone.")
    service.erase(user, reason="operator")
    click.echo(f"erased {user}")


def _check_known(user: str) -> None:
    """Refuse an unknown member: a mistyped id must not look like a member without data."""
    try:
        service.get_consent(user)
    except VerificationRequired as error:
        raise click.ClickException(f"the host has no member {user}") from error
