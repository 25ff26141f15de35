"""The gateway as a process, its health, and the clients of the documentation."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dev.embedded import free_port
from tests.client import end, start
from tests.conftest import ROOT
from tests.factories import SECRET, Factory, token
from tests.live.phone import RawPhone, hello
from tests.processes import Processes, environ
from tests.stopwatch import eventually

CLIENTS = dict(re.findall(r"```(python|js)\n(.*?)```", (ROOT / "docs/live.md").read_text(), re.DOTALL))


def ask(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urlopen(Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def started(tmp_path: Path, database_url: str, redis_url: str, redis: object) -> Iterator[tuple[Any, str]]:
    """Return a gateway's process, and its URL."""
    port = free_port()
    with Processes(tmp_path, environ(database_url, redis_url, LIVE_PORT=str(port))) as processes:
        process = processes("live")
        url = f"http://127.0.0.1:{port}"
        process.says("gateway started")
        eventually(lambda: is_up(url))
        yield process, url


def is_up(url: str) -> bool:
    try:
        return ask(f"{url}/healthz")[0] == 200
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.xdist_group("gateway")
def test_at_sigterm_clients_are_told_to_connect_again(started: tuple[Any, str], factory: Factory) -> None:
    process, url = started
    raw = RawPhone(url).says(hello(factory.member()))
    assert raw.hears().startswith("40{")
    process.terminate()
    assert raw.close_code() == 1012
    assert process.exit_code() == 0
    assert "Traceback" not in process.output()


def test_it_serves_its_health_and_metrics_and_nothing_else(
    make_app: Callable[..., Flask], serve: Any, factory: Factory
) -> None:
    url = serve(make_app(metrics_token=SECRET))
    assert ask(f"{url}/healthz") == (200, '{"status":"ok","success":true}\n')
    status, body = ask(f"{url}/readyz")
    assert (status, json.loads(body)["redis"]) == (200, "ok")
    assert ask(f"{url}/metrics")[0] == 401
    assert "after_hours_live_connections 0" in ask(f"{url}/metrics", Authorization=f"Bearer {SECRET}")[1]
    for path in ("/api/after-hours/session", "/socket.io/?EIO=4&transport=polling", "/", "/docs", "/openapi.json"):
        status, body = ask(f"{url}{path}", Authorization=f"Bearer {token(factory.member())}")
        assert (status, json.loads(body)["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("language", ["python", "js"])
def test_the_clients_of_the_documentation_work_as_shown(
    client: FlaskClient, factory: Factory, gateway: str, tmp_path: Path, language: str
) -> None:
    member = factory.member()
    command = (
        [sys.executable, write(tmp_path, "client.py", CLIENTS["python"])] if language == "python" else node(tmp_path)
    )
    phone = subprocess.Popen([*command, gateway, token(member)], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert phone.stdout
    try:
        assert phone.stdout.readline().startswith("after_hours:state")
        start(client, member)
        assert phone.stdout.readline().startswith("after_hours:session_started")
        end(client, member)
        assert "user" in phone.stdout.readline()
    finally:
        phone.kill()
        phone.communicate()
    if language == "python":  # the other one tries again for ever
        refused = subprocess.run(
            [*command, gateway, "nonsense"], check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        assert refused.stdout == "refused TOKEN_INVALID\n"


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def node(folder: Path) -> list[str]:
    """Return the command that runs the JavaScript client; its library is installed into the test's folder."""
    npm, program = shutil.which("npm"), shutil.which("node")
    if not npm or not program:
        pytest.skip("no node here: Debian has it in the packages nodejs and npm")
    install = [
        npm,
        "install",
        "--no-audit",
        "--no-fund",
        "--fetch-retries=0",
        "--fetch-timeout=20000",
        "socket.io-client@4.8",
    ]
    try:
        subprocess.run(install, check=True, cwd=folder, capture_output=True, timeout=120)
    except subprocess.SubprocessError as error:
        pytest.skip(f"socket.io-client could not be installed: {error}")
    return [program, write(folder, "client.mjs", CLIENTS["js"])]
