"""The package, installed into an environment of its own, is the whole service: no checkout is needed."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psycopg2
import pytest
from redis import Redis

from afterhours_service.jobs.events import CHANNEL
from tests.client import API
from tests.conftest import ROOT
from tests.factories import PLACE, Factory, bearer
from tests.processes import Processes, environ, image_files
from tests.stopwatch import eventually

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]

BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
# Nothing of the tests' own environment, such as PYTHONPATH.
BARE = {"PATH": os.defpath}


def run(*command: str | Path, cwd: Path, **settings: str) -> str:
    done = subprocess.run(
        command, check=False, cwd=cwd, env={**BARE, **settings}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from what the image is built from: in place, it would leave folders in the checkout."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in image_files():
        path = ROOT / name
        shutil.copytree(path, source / name) if path.is_dir() else shutil.copy(path, source)
    left_by_another_release = source / "build/lib/afterhours_service/stale.py"
    left_by_another_release.parent.mkdir(parents=True)
    left_by_another_release.touch()
    run(sys.executable, "-c", BUILD, folder, cwd=source)
    [wheel] = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment that has the wheel. The dependencies are those of the tests' own environment."""
    folder = tmp_path_factory.mktemp("any folder")
    python = folder / "bin/python"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"),
        *("--no-index", "--no-deps", "--no-compile", wheel),
        cwd=folder,
    )
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    Path(site.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def ask(url: str, headers: dict[str, str], body: dict[str, Any] | None = None) -> Any:
    data = json.dumps(body).encode() if body else None
    with urlopen(Request(url, data, {**headers, "Content-Type": "application/json"}), timeout=60) as response:
        return json.loads(response.read())


def test_the_wheel_has_every_module_and_migration_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "afterhours_service").rglob("*.py")}
    migrations = {path.relative_to(ROOT / "alembic") for path in (ROOT / "alembic").rglob("*.py")}
    others = {name for name in names if not name.endswith(".py")}
    assert {name for name in names - others if ".data/" not in name} == modules | {
        f"afterhours_service/migrations/{path}" for path in migrations
    }
    assert others == {
        "afterhours_service/py.typed",
        "afterhours_service/migrations/alembic.ini",
        "afterhours_service/migrations/script.py.mako",
    }


def test_the_first_session_with_nothing_but_the_wheel(
    installed: Path, make_database: Callable[..., str], redis: Redis, redis_url: str
) -> None:
    database_url = make_database(None)
    path = f"{installed / 'bin'}{os.pathsep}{os.defpath}"
    settings = environ(database_url, redis_url, PATH=path, AFTER_HOURS_MINUTE_SECONDS="1")
    find = "import importlib.util; print(importlib.util.find_spec('afterhours_service').origin)"
    where = run(installed / "bin/python", "-c", find, cwd=installed)
    assert Path(where).is_relative_to(installed)
    upgrade = ("-m", "flask", "--app", "afterhours_service", "db", "upgrade")
    run(installed / "bin/python", *upgrade, cwd=installed, **settings)
    with (
        Processes(installed, settings, cwd=installed) as start,
        contextlib.closing(psycopg2.connect(database_url)) as connection,
        redis.pubsub(ignore_subscribe_messages=True) as events,  # type: ignore[no-untyped-call]
    ):
        web, url = start.web("after-hours-api")
        origin = url.removesuffix(f"{API}/session")
        ready = ask(f"{origin}/readyz", {})
        assert (ready["status"], ready["schema"]) == ("ok", "ok")

        api = f"{origin}{API}"
        connection.autocommit = True
        factory = Factory(connection)
        nia = factory.member(profile=False)
        events.subscribe(CHANNEL)
        assert ask(f"{api}/profile", bearer(nia), {"description": "New here"})["profile"]["userId"] == nia
        session = ask(f"{api}/session/start", bearer(nia), {"duration": 15, **PLACE})["session"]
        assert ask(f"{api}/session", bearer(nia))["session"]["id"] == session["id"]
        factory.travel(60)
        assert not ask(f"{api}/session", bearer(nia))["active"]

        processes = (web, start("after-hours-worker"), start("after-hours-scheduler"))
        told: list[str] = []
        while "after_hours:session_expired" not in told:
            message = eventually(lambda: events.get_message(timeout=1))
            told.append(json.loads(message["data"])["type"])
        assert told == ["after_hours:session_started", "after_hours:session_expired"]
        [row] = factory.sessions(nia)
        assert row.ended_at == row.expires_at
        for process in processes:
            process.terminate()
        assert [process.exit_code() for process in processes] == [0, 0, 0]
        for process in processes:
            assert '"level": "error"' not in process.output()
