"""What is in deploy/ stays true: the image has all that its processes need, and the checkers find nothing."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCKERFILE = ROOT / "deploy/Dockerfile"
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


def copied() -> list[str]:
    """Return what the image is built from, by the names that these files and folders have in the repository."""
    words = re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    return " ".join(words).split()


def test_the_image_is_given_what_it_copies_and_nothing_else() -> None:
    lines = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    assert set(copied()) == {line[1:] for line in lines if line[0] == "!"}


def test_every_process_of_the_procfile_is_deployed() -> None:
    commands = [line.split(": ", 1)[1].split()[-1].strip("'") for line in (ROOT / "Procfile").read_text().splitlines()]
    # A checkout starts them as files, an installed package as commands.
    commands = [re.sub(r"(\w+)\.py", r"after-hours-\1", command) for command in commands]
    units = "".join(path.read_text() for path in (ROOT / "deploy/systemd").glob("*.service"))
    compose = (ROOT / "deploy/compose.yaml").read_text() + DOCKERFILE.read_text()
    for command in commands:
        assert command in units
        assert command in compose


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    folder = tmp_path / "etc/systemd/system"
    shutil.copytree(ROOT / "deploy/systemd", folder)
    for program in ("gunicorn", "after-hours-worker", "after-hours-scheduler"):
        path = tmp_path / "opt/after-hours/current/bin" / program
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
