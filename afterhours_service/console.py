"""Input and output of commands: tables for people, JSON for machines, and one line for any error."""

import errno
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from flask.cli import AppGroup
from redis.exceptions import ConnectionError, RedisError, TimeoutError  # noqa: A004 - the names that redis-py gave them
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.stores.objects import StorageUnavailable
from afterhours_service.telemetry.log import get_logger
from afterhours_service.text import is_storable, isoformat
from afterhours_service.web import errors

logger = get_logger(__name__)


class Commands(AppGroup):
    """A group of commands that never end in a traceback; nor do those of its subgroups."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Raises ClickException for any error; click prints `Error: …` and exits with 1."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, EOFError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # such as `| head`; click handles it
                raise
            logger.debug("command failed", exc_info=error)
            raise click.ClickException(explain(error)) from error


def explain(error: Exception) -> str:
    """Return one line that says what went wrong."""
    match error:
        case errors.AppError():
            text = error.__doc__ or error.code
        case SQLAlchemyError():
            text = _explain_database(error)
        case StorageUnavailable():
            text = f"The photos' storage cannot be reached: {_first_line(error)}"
        case ConnectionError() | TimeoutError():
            text = f"Redis cannot be reached: {_first_line(error)}"
        case RedisError():
            text = f"Redis refused: {_first_line(error)}"
        case OSError():
            text = f"{error.filename or 'The system'}: {error.strerror}"
        case _:
            text = f"Something went wrong on our side ({type(error).__name__}); LOG_LEVEL=DEBUG shows where."
    return text


def _explain_database(error: SQLAlchemyError) -> str:
    """Return the database's message, without the statement's parameters: they may say where a member is."""
    cause = getattr(error, "orig", None) or error
    if errors.is_database_away(error):
        return f"The database cannot serve now: {_first_line(cause)}"
    code = getattr(cause, "pgcode", None)
    return f"The database refused: {type(cause).__name__}{f' ({code})' if code else ''}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_storable_id(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not value or not is_storable(value):
        raise click.BadParameter("not a member's id")
    return value


member = click.argument("user", callback=_is_storable_id)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
yes = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def confirm(question: str) -> None:
    """Ask on standard error, so that the output can be piped. Raises Abort unless the answer is yes."""
    click.confirm(question, abort=True, err=True)


def write_json(value: Any) -> None:
    """Print a value as JSON; dates as clients read them, other types as their text."""
    click.echo(json.dumps(value, default=lambda v: isoformat(v) if isinstance(v, datetime) else str(v), indent=2))


def write_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print aligned columns with headings, numbers to the right."""
    rows = list(rows)
    lines = [list(heads), *([_text(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [bool(rows) and all(isinstance(row[i], int) for row in rows) for i in range(len(heads))]
    for line in lines:
        cells = (
            text.rjust(width) if to_the_right else text.ljust(width)
            for text, width, to_the_right in zip(line, widths, right, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def write_facts(facts: Mapping[str, Any]) -> None:
    """Print a name and a value per line."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}  {_text(value)}")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return isoformat(value) if isinstance(value, datetime) else str(value)
