"""The servers out of wheels: they keep their data, and leave no process behind however their owner ends."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from redis import Redis

from dev import embedded
from tests.conftest import ROOT, _ram

# Becomes an ordinary user itself: the interpreter may lie where only root may go.
OWNER = """
import json, os, signal, sys
from dev.embedded import *
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job is started without
stop_on_signals()
if sys.argv[2:]:
    os.setgroups([]), os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[2]))
with contextlib.suppress(KeyboardInterrupt), services(Path(sys.argv[1])) as urls:
    print(json.dumps(urls), flush=True)
    signal.pause()
"""
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short path that every user may enter."""
    made = Path(tempfile.mkdtemp(prefix="after-hours-", dir=_ram()))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def processes(folder: Path, program: str = "") -> list[int]:
    """Return the ids of the processes, by default of any program, that were started with a path in the folder."""
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,args="], check=True, capture_output=True, text=True).stdout
    found = [line.split(maxsplit=1) for line in listed.splitlines() if str(folder) in line]
    return [int(pid) for pid, arguments in found if arguments.startswith(program)]


def wait_until_none_is_left(folder: Path) -> None:
    end = time.monotonic() + 10
    while processes(folder) and time.monotonic() < end:
        time.sleep(0.02)
    assert processes(folder) == []


@contextlib.contextmanager
def owner(folder: Path, *user: int) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """Run a process that owns the servers of `folder`, and yield it and their URLs."""
    command = [sys.executable, "-c", OWNER, str(folder), *map(str, user)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def check_ends(folder: Path, ends: tuple[signal.Signals, ...], *user: int) -> None:
    written = 0
    for end in ends:
        with owner(folder, *user) as (process, urls):
            with (
                contextlib.closing(psycopg2.connect(urls["DATABASE_URL"])) as connection,
                Redis.from_url(urls["REDIS_URL"]) as redis,
                connection.cursor() as cursor,
            ):
                cursor.execute("CREATE TABLE IF NOT EXISTS runs (n int)")
                cursor.execute("SELECT count(*) FROM runs")
                assert cursor.fetchone() == (written,)
                cursor.execute("INSERT INTO runs VALUES (1)")
                connection.commit()
                written += 1
                assert redis.incr("runs") == written
            process.send_signal(end)
            assert process.wait(60) == (-end if end == signal.SIGKILL else 0)
        wait_until_none_is_left(folder)


def test_however_the_owner_ends_no_server_is_left_and_the_data_is_there_again(folder: Path) -> None:
    check_ends(folder, ENDS)


@as_root
def test_an_ordinary_user_can_run_them_too(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    check_ends(folder, (signal.SIGTERM, signal.SIGKILL), nobody.pw_uid, nobody.pw_gid)
    assert {path.stat().st_uid for path in folder.rglob("*")} == {nobody.pw_uid}


def test_servers_that_a_killed_owner_left_are_ended_by_the_next_start(folder: Path) -> None:
    with owner(folder) as (process, _):
        for guard in processes(folder, "/bin/sh"):
            os.kill(guard, signal.SIGKILL)
        process.kill()
        process.wait(60)
    assert len(processes(folder)) == 2
    with embedded.services(folder) as urls, contextlib.closing(psycopg2.connect(urls["DATABASE_URL"])):
        assert len(processes(folder, "/bin/sh")) == 2
    wait_until_none_is_left(folder)


def test_a_folder_in_use_is_refused_and_free_again_afterwards(folder: Path) -> None:
    with embedded.home(folder), pytest.raises(SystemExit, match="already running in"), embedded.home(folder):
        pass
    with embedded.home(folder):
        pass


def test_a_path_that_no_socket_can_have_is_refused(folder: Path) -> None:
    with pytest.raises(SystemExit, match="too long"), embedded.home(folder / ("x" * 90)):
        pass


@as_root
def test_the_folder_of_somebody_else_is_refused(folder: Path) -> None:
    os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(SystemExit, match="belongs to another user"), embedded.home(folder):
        pass


@as_root
def test_root_goes_elsewhere_with_what_nobody_could_not_reach(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "ELSEWHERE", folder)
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with embedded.home(closed / "one") as one, embedded.home(closed / "two") as two:
        assert one.state.parent == two.state.parent == folder
        assert one.state != two.state
        one.run("/bin/sh", "-c", f"echo > {one.path}/written")
    with embedded.home(closed / "one") as again:
        assert (again.path / "written").exists()
