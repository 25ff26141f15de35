"""Gateways in threads of the tests' process, and the phones that connect to them."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from afterhours_service.live.server import make_server
from tests.live.phone import Phone
from tests.stopwatch import eventually

Serve = Callable[[Flask], str]


@pytest.fixture
def serve(redis: object) -> Iterator[Serve]:
    """Return a function that starts a gateway for an app, and returns its URL."""
    started = []

    def start(app: Flask) -> str:
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        server = make_server(app, "127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="gateway")
        thread.start()
        started.append((server, thread))
        eventually(lambda: server.started)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join()


@pytest.fixture
def gateway(app: Flask, serve: Serve) -> str:
    """Return the URL of a gateway."""
    return serve(app)


@pytest.fixture
def phone(gateway: str) -> Iterator[Callable[[], Phone]]:
    """Return a function that makes a phone, which is not connected yet."""
    with contextlib.ExitStack() as phones:

        def make(url: str = gateway) -> Phone:
            made = Phone(url)
            phones.callback(made.hangs_up)
            return made

        yield make
