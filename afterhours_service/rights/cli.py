"""Members' rights for the operator, when a member asks in writing."""

import click
from flask.cli import AppGroup

from afterhours_service import console
from afterhours_service.rights import service
from afterhours_service.web.errors import VerificationRequired

members = AppGroup("members", help="Answer a member's request for their data, or its erasure.")


@members.command("export")
@console.member
def export_member(user: str) -> None:
    """Write everything that is held on USER, as JSON."""
    _check_known(user)
    for piece in service.export(user):
        click.echo(piece, nl=False)
    click.echo()


@members.command("erase")
@console.member
@console.yes
def erase_member(user: str, yes: bool) -> None:
    """Erase everything that is held on USER, photos too, and end their session; the host's rows stay."""
    _check_known(user)
    if not yes:
        console.confirm(f"Erase everything that After Hours holds on {user}? There is no way back.")
    service.erase(user, reason="operator")
    click.echo(f"erased {user}")


def _check_known(user: str) -> None:
    """Say so when there is no such member: a mistyped id must not pass for one of whom nothing is held."""
    try:
        service.get_consent(user)
    except VerificationRequired as error:
        raise click.ClickException(f"the host has no member {user}") from error
