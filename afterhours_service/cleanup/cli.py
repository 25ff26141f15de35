"""The command that runs the cleanup by hand."""

import sys

import click
from flask.cli import with_appcontext

from afterhours_service import console
from afterhours_service.cleanup import service
from afterhours_service.jobs.runs import recorded


@click.command()
@click.option("--dry-run", is_flag=True, help="Only count what would be ended or deleted.")
@console.yes
@console.as_json
@with_appcontext
def cleanup(dry_run: bool, yes: bool, as_json: bool) -> None:
    """End overdue sessions, and delete data that is no longer needed."""
    pending = service.pending()
    if dry_run:
        _print(pending, "would be ", as_json)
        return
    if not yes:
        console.confirm(f"End and delete {sum(pending.values())} rows and photos, as listed by --dry-run?")
    with click.progressbar(
        length=sum(pending.values()), label="cleaning up", hidden=not sys.stderr.isatty(), file=sys.stderr
    ) as bar:
        done = service.Round()
        with recorded("cleanup") as run:
            try:
                service.run(done, progress=lambda _step, rows: bar.update(rows))
            except service.Busy as error:
                raise click.ClickException("another cleanup is running") from error
            run.update({**done.counts, "done": not done.left})
    _print(done.counts, "", as_json)
    if done.left:
        raise click.ClickException(f"{done.left} rows or steps failed; see the log")


def _print(counts: dict[str, int], prefix: str, as_json: bool) -> None:
    if as_json:
        console.write_json(counts)
        return
    for step, rows in counts.items():
        action = "ended" if step == "overdue_sessions" else "deleted"
        click.echo(f"{step.replace('_', ' '):<20} {rows:>9} {prefix}{action}")
