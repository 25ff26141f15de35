"""Members' rights for the operator, when a member asks in writing."""

import click
from flask.cli import AppGroup

from afterhours_service import console
from afterhours_service.members import service

members = AppGroup("members", help="Answer a member's request for their data, or its erasure.")


@members.command("export")
@click.argument("user")
def export_member(user: str) -> None:
    """Write everything that is held on USER, as JSON."""
    for piece in service.export(user):
        click.echo(piece, nl=False)
    click.echo()


@members.command("erase")
@click.argument("user")
@console.yes
def erase_member(user: str, yes: bool) -> None:
    """Erase everything that is held on USER, photos too, and end their session; the host's rows stay."""
    if not yes:
        click.confirm(f"Erase everything that After Hours holds on {user}? There is no way back.", abort=True)
    service.erase(user, reason="operator")
    click.echo(f"erased {user}")
