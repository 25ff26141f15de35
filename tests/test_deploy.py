"""What is in deploy/ stays true: the image has all that its processes need, and the checkers find nothing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.factories import SECRET

DOCKERFILE = ROOT / "deploy/Dockerfile"
START = """
import worker, scheduler
from flask_migrate import upgrade
from afterhours_service import create_app

app = create_app()
with app.app_context():
    upgrade()
answer = app.test_client().get("/readyz")
assert answer.json["status"] == "ok", answer.text
"""
UNITS = ("after-hours-api@8001", "after-hours-worker@1", "after-hours-timers@1", "after-hours-scheduler@1")


def run(*command: str, cwd: Path = ROOT, **environ: str) -> str:
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_image_has_all_that_the_processes_need(tmp_path: Path, database_url: str, redis_url: str) -> None:
    sources = [
        words.split()
        for words in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE.read_text().split("FROM")[2], re.MULTILINE)
    ]
    allowed = {
        line[1:] for line in (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    names = {name for *names, _ in sources for name in names}
    assert names | {"requirements.txt"} == allowed
    for name in names:
        path = ROOT / name
        shutil.copytree(path, tmp_path / name) if path.is_dir() else shutil.copy(path, tmp_path)
    environ = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "JWT_SECRET": SECRET,
        "LOCATION_SECRET": SECRET[::-1],
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    run(sys.executable, "-c", START, cwd=tmp_path, **environ)


def test_every_process_of_the_procfile_is_deployed() -> None:
    commands = [line.split(": ", 1)[1].split()[-1].strip("'") for line in (ROOT / "Procfile").read_text().splitlines()]
    units = "".join(path.read_text() for path in (ROOT / "deploy/systemd").glob("*.service"))
    compose = (ROOT / "deploy/compose.yaml").read_text() + DOCKERFILE.read_text()
    for command in commands:
        assert command in units
        assert command in compose


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    folder = tmp_path / "etc/systemd/system"
    shutil.copytree(ROOT / "deploy/systemd", folder)
    for program in ("gunicorn", "python"):
        path = tmp_path / "opt/after-hours/current/.venv/bin" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
    for standard in ("sysinit", "basic", "shutdown", "network-online", "multi-user"):
        (folder / f"{standard}.target").write_text("[Unit]\n")
    units = [f"{unit}.service" for unit in UNITS]
    said = run("systemd-analyze", "verify", f"--root={tmp_path}", *units, "after-hours.target")
    assert [line for line in said.splitlines() if "after-hours" in line] == []


@pytest.mark.skipif(not shutil.which("hadolint"), reason="no hadolint here")
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    run("hadolint", str(DOCKERFILE))
