"""Write docs/settings.md from the declarations in afterhours_service/config."""

from itertools import chain
from pathlib import Path

from afterhours_service.config import S3Settings, Settings
from afterhours_service.config.variables import variables_of

PATH = Path(__file__).parent.parent / "docs" / "settings.md"

_INTRODUCTION = """\
# Settings

<!-- Written by `make settings`; edit afterhours_service/config/__init__.py. -->

Every process reads its settings from environment variables and from nowhere else. A process whose settings are invalid
does not start; it prints every problem at once. The libraries that will use a URL check it at the start, without
connecting. `JWT_SECRET`, `LOCATION_SECRET` and `METRICS_TOKEN` must differ from one another.

"""


def text() -> str:
    """Return the page."""
    declared = (each for _, each in chain(variables_of(Settings), variables_of(S3Settings)))
    rows = [each.row() for each in declared]
    return _INTRODUCTION + "\n".join(["| variable | meaning | default |", "| --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    PATH.write_text(text())
