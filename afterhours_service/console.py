"""How commands speak: tables for people, JSON for machines."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click

from afterhours_service.schemas import isoformat

as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON, for machines.")
yes = click.option("--yes", is_flag=True, help="Do not ask.")


def write_json(value: Any) -> None:
    """Write a value; datetimes as clients read them, anything else that JSON lacks as text."""
    click.echo(json.dumps(value, default=lambda v: isoformat(v) if isinstance(v, datetime) else str(v), indent=2))


def write_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write aligned columns under their heads, numbers to the right."""
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
    """Write a name and a value a line."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}  {_text(value)}")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return isoformat(value) if isinstance(value, datetime) else str(value)
