"""A PgBouncer for one test, set up as docs/operations.md says, which may be stopped and started again."""

import contextlib
import os
import re
import shutil
import signal
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class
from psycopg2.extensions import parse_dsn
from sqlalchemy import make_url

from dev.embedded import home, running, wait_until
from tests.conftest import ROOT

# Debian's folder for it is not on everybody's PATH.
BINARY = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
_PARAGRAPH = re.search(r"\*\*PgBouncer\.\*\*.*?\n\n\*\*", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
assert _PARAGRAPH
SETTINGS = dict(re.findall(r"^(\w+) = (\S+)$", _PARAGRAPH[0], re.MULTILINE))
OF_THE_ROLE = re.findall(r"^ALTER ROLE after_hours (SET .+);$", _PARAGRAPH[0], re.MULTILINE)


class PgBouncer:
    """Pools connections to a database from `start` until `stop`, which is sudden. size: connections to the server."""

    def __init__(self, folder: Path, database_url: str, mode: str, size: int) -> None:
        if BINARY is None:
            pytest.skip("no pgbouncer here: Debian has it in the package pgbouncer")
        self._folder, self._target, self.mode, self.size = folder, parse_dsn(database_url), mode, size
        self.name = self._target["dbname"]
        self._running = contextlib.ExitStack()
        url = make_url(database_url).set(host=None, port=None, query={"host": str(folder / "srv"), "port": "6432"})
        self.url = url.render_as_string(hide_password=False)
        with contextlib.closing(psycopg2.connect(database_url)) as direct, direct.cursor() as cursor:
            for setting in OF_THE_ROLE:  # roles belong to the server, which other tests use
                cursor.execute(f"ALTER DATABASE {self._target['dbname']} {setting}")
            direct.commit()

    def start(self) -> None:
        place = self._running.enter_context(home(self._folder))
        target = " ".join(f"{name}='{value}'" for name, value in self._target.items())
        settings = SETTINGS | {
            "pool_mode": self.mode,
            "default_pool_size": str(self.size),
            "auth_type": "any",
            "listen_port": "6432",
            "unix_socket_dir": str(place.path),
        }
        lines = ["[databases]", f"{self._target['dbname']} = {target}", "[pgbouncer]"]
        file = self._folder / "pgbouncer.ini"
        file.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in settings.items()), ""]))
        assert BINARY
        process = self._running.enter_context(running(place, [BINARY, file], signal.SIGKILL))
        wait_until(process, self._answers, place)

    def stop(self) -> None:
        self._running.close()

    def connect(self) -> Connection:
        """Return a connection of the test's own through it."""
        return psycopg2.connect(self.url)

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg2.OperationalError), contextlib.closing(self.connect()):
            return True
        return False
