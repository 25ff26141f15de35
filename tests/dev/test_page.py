"""The page of `make run`, in a real browser: a whole evening, and an engine room that breaks things."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Locator, Page, expect, sync_playwright

from dev.demo import portrait
from dev.embedded import free_port
from dev.page import make_page
from dev.processes import Processes
from dev.run import is_taken
from tests.conftest import ROOT
from tests.stopwatch import eventually

PATIENCE_MS = 60_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        assert "BROWSER_REQUIRED" not in os.environ, "no browser"
        pytest.skip("no browser here: Debian has it in the package chromium")
    return found


def three_free_ports() -> int:
    """Return a port that is free, as are the two after it."""
    first = free_port()
    while is_taken(first + 1) or is_taken(first + 2):
        first = free_port()
    return first


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of the page of a running demo, in which a minute lasts a second."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "dev.run", "--minute-seconds", "1"]
    command += ["--port", str(three_free_ports()), "--state", str(folder / "state")]
    environ = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "REDIS_URL"}}
    with (folder / "log").open("wb") as log:
        run = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environ)
    try:
        yield eventually(lambda: said(folder / "log", run))
    finally:
        run.send_signal(signal.SIGTERM)
        run.wait(60)


def said(log: Path, run: "subprocess.Popen[bytes]") -> str | None:
    assert run.poll() is None, log.read_text()
    found = re.search(r"See it work: (\S+),", log.read_text())
    return found and found[1]


@pytest.fixture
def screen(address: str) -> Iterator[Page]:
    """Return the page, open in a browser; at the end there must be no error on its console."""
    program = browser()
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        opened = window.new_page(viewport={"width": 1280, "height": 860})
        opened.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        problems: list[str] = []
        opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.goto(address)
        yield opened
        window.close()
    # Browsers log each answer of 400 and above: one asks for a profile that is not there yet.
    assert [each for each in problems if "a status of 404" not in each] == []


def phones(screen: Page) -> tuple[Locator, Locator]:
    one, other = screen.get_by_label("First phone"), screen.get_by_label("Second phone")
    for phone in (one, other):
        expect(phone.locator(".link")).to_have_text("connected")
    return one, other


@pytest.mark.slow
@pytest.mark.xdist_group("page")
def test_a_whole_evening(screen: Page) -> None:
    one, other = phones(screen)
    one.get_by_label("Member").select_option("Nia")
    expect(one.get_by_text("You have no After Hours profile yet.")).to_be_visible()
    one.get_by_label("About tonight").fill("New here")
    one.get_by_label("Photo").set_input_files({"name": "nia.png", "mimeType": "image/png", "buffer": portrait(120)})
    one.get_by_role("button", name="Create profile").click()
    expect(one.get_by_text("New here")).to_be_visible()
    other.get_by_label("Member").select_option("Alex")
    for phone in (one, other):
        phone.get_by_label("Old Town").check()
        phone.get_by_role("button", name="Go live").click()
        expect(phone.get_by_role("timer")).to_have_text(re.compile(r"0:1\d"))
    for phone, name in ((one, "Alex"), (other, "Nia")):
        expect(phone.get_by_role("heading", name="A match")).to_be_visible()
        expect(phone.locator(".match")).to_contain_text(f"{name}, 29, within 1 km")
    one.get_by_role("button", name="Accept").click()
    expect(one.get_by_text("You have accepted.")).to_be_visible()
    expect(other.get_by_text("Nia has accepted.")).to_be_visible()
    other.get_by_role("button", name="Decline").click()
    expect(one.locator(".match")).to_be_hidden()
    expect(one.get_by_text("2 minutes left. Stay longer?")).to_be_visible()
    one.get_by_role("button", name="15 more").click()
    expect(one.get_by_role("timer")).to_have_text(re.compile(r"0:1\d"))
    expect(other.get_by_text("Time is up. Nobody sees you any more.")).to_be_visible()
    one.get_by_role("button", name="Leave now").click()
    expect(one.get_by_text("You have left. Nobody sees you any more.")).to_be_visible()
    for event in (
        "Nia session_started",
        "Alex match",
        "Alex match_accepted",
        "Alex session_expired",
        "Nia session_ended",
    ):
        expect(screen.get_by_label("Events as they pass").get_by_text(event, exact=False).first).to_be_visible()


@pytest.mark.slow
@pytest.mark.xdist_group("page")
def test_whatever_is_broken_sessions_end_on_time(screen: Page) -> None:
    one, _ = phones(screen)
    one.get_by_label("Member").select_option("Alex")
    one.get_by_role("button", name="Go live").click()
    expect(one.get_by_role("timer")).to_be_visible()
    for name in ("Stop the worker", "Kill the scheduler", "Empty Redis"):
        screen.get_by_role("button", name=name).click()
    expect(screen.locator("#stop-worker")).to_be_disabled()
    expect(screen.locator("#kill-scheduler")).to_be_disabled()
    expect(one.get_by_role("button", name="Go live")).to_be_visible()  # no event told of the end
    expect(screen.locator("#figures")).to_contain_text("Active sessions0")
    for name in ("Start the worker", "Start the scheduler"):
        screen.get_by_role("button", name=name).click()
    expect(screen.locator("#stop-worker")).to_be_enabled()
    expect(screen.get_by_label("Events as they pass").get_by_text("Alex session_expired").first).to_be_visible()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"path": "/demo/members", "headers": {"Host": "evil.example"}}, 403),
        ({"path": "/demo/engine/empty-redis", "method": "POST"}, 403),
        ({"path": "/demo/engine/empty-redis", "method": "POST", "headers": {"X-Demo": "1"}}, 409),
        ({"path": "/demo/engine/start-everything", "method": "POST", "headers": {"X-Demo": "1"}}, 409),
        ({"path": "/demo/members"}, 200),
        ({"path": "/demo/engine"}, 200),
    ],
)
def test_the_page_serves_itself_only(app: Flask, tmp_path: Path, request_: dict[str, Any], status: int) -> None:
    page = make_page(app, Processes({}, tmp_path / "log"), may_empty_redis=False).test_client()
    with page.open(base_url="http://127.0.0.1:8001", **request_) as answer:
        assert answer.status_code == status
