"""The app as granian calls it: requests wait for their bodies on an event loop, and then run in a few threads.

granian has a WSGI interface, too. It keeps a thread for each body that is still on its way, and takes a broken one for
a complete one.
"""

import asyncio
import contextlib
import io
import json
import math
import sys
import threading
import time
from collections.abc import Iterable
from queue import SimpleQueue
from typing import Any, NamedTuple, NoReturn

from flask import Flask
from granian.rsgi import HTTPProtocol, ProtocolClosed, ProtocolError, Scope

from afterhours_service.config import Settings
from afterhours_service.profiles.photo import MAX_REQUEST_BYTES as PHOTO_BYTES
from afterhours_service.telemetry.log import get_logger
from afterhours_service.web.errors import AppError, InternalError
from afterhours_service.web.gate import member_of
from afterhours_service.web.overload import OVERLOADED

logger = get_logger(__name__)

BODY_SECONDS = 120  # for a body to arrive: ten megabytes over a slow mobile connection
MEMBERS_UPLOADS = 2  # one may be on a connection that broke without a word
PHOTO_PATH = "/api/after-hours/profile/photo"
ALIVE_PATH = "/healthz"

Headers = list[tuple[str, str]]
Environ = dict[str, Any]


class Lane(NamedTuple):
    """Threads that answer a kind of request, and how many more requests may wait for them."""

    name: str
    threads: int
    waiting: int


# Two threads a core keep it busy while others wait for PostgreSQL. The pool's 15 connections suffice for all three.
MEMBERS = Lane("members", threads=4, waiting=128)
PHOTOS = Lane("photos", threads=2, waiting=16)  # each takes seconds, most of them in another process
OPERATORS = Lane("operators", threads=2, waiting=16)  # probes and metrics are answered whatever the members wait for
OPERATORS_PATHS = {"/readyz", "/metrics"}


class Application:
    """An RSGI application: one per process."""

    def __init__(self, app: Flask) -> None:
        self._app, self._max_bytes = app, app.config["MAX_CONTENT_LENGTH"]
        self._settings: Settings = app.extensions["after_hours_settings"]
        self._uploads: list[str] = []  # the members whose bodies are held
        self._loop_ran = math.inf
        self._lanes = {lane: _Threads(lane, self._answer) for lane in (MEMBERS, PHOTOS, OPERATORS)}

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Note each second that the loop runs."""
        self._loop_ran = time.monotonic()
        loop.call_later(1, self.__rsgi_init__, loop)

    def oldest(self) -> float:
        """Return since when the longest of the running requests runs, on the monotonic clock; now if there is none.

        Or since when the event loop stands still. Photos have limits of their own, and wait for each other.
        """
        return min(self._loop_ran, self._lanes[MEMBERS].oldest(), self._lanes[OPERATORS].oldest())

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        """Answer a request."""
        environ = _environ(scope)
        if scope.path == ALIVE_PATH:  # right here: it tells whether the process works, and waits for nothing
            self._answer(environ, protocol)
        elif scope.path == PHOTO_PATH and scope.method == "POST":
            await self._take_photo(environ, protocol)
        else:
            await _read_body(environ, protocol, self._max_bytes)
            await self._run(OPERATORS if scope.path in OPERATORS_PATHS else MEMBERS, environ, protocol)

    async def _take_photo(self, environ: Environ, protocol: HTTPProtocol) -> None:
        """Answer an upload. A worker holds the bodies of a few at a time, two of a member, none of a stranger."""
        member = _member(environ, self._settings)
        if member is None:
            await _discard_body(protocol)
            await self._run(PHOTOS, environ, protocol)
        elif self._uploads.count(member) >= MEMBERS_UPLOADS or len(self._uploads) >= PHOTOS.threads + PHOTOS.waiting:
            await _discard_body(protocol)
            self._answer(environ | {OVERLOADED: True}, protocol)
        else:
            self._uploads.append(member)
            try:
                await _read_body(environ, protocol, PHOTO_BYTES)
                await self._run(PHOTOS, environ, protocol)
            finally:
                self._uploads.remove(member)

    async def _run(self, lane: Lane, environ: Environ, protocol: HTTPProtocol) -> None:
        if not await self._lanes[lane].run(environ, protocol):
            self._answer(environ | {OVERLOADED: True}, protocol)

    def _answer(self, environ: Environ, protocol: HTTPProtocol) -> None:
        started: list[tuple[int, Headers]] = []

        def start_response(status: str, headers: Headers, _error: object = None) -> None:
            started.append((int(status[:3]), headers))

        try:
            parts: Iterable[bytes] = self._app(environ, start_response)  # type: ignore[arg-type]
            try:
                body = b"".join(parts)
            finally:
                if close := getattr(parts, "close", None):
                    close()
            status, headers = started[-1]
        except Exception:
            logger.exception("a request failed outside the app")
            status, headers, body = _INTERNAL_ERROR
        # Clients need not know the program and its version.
        protocol.response_bytes(status, [*headers, ("Server", "after-hours")], body)


class _Threads:
    def __init__(self, lane: Lane, answer: Any) -> None:
        self._lane, self._answer = lane, answer
        self._queue: SimpleQueue[tuple[Environ, HTTPProtocol, asyncio.Future[None]]] = SimpleQueue()
        self._accepted = 0
        self._running: dict[int, float] = {}
        for _ in range(lane.threads):
            threading.Thread(target=self._work, name=lane.name, daemon=True).start()

    def oldest(self) -> float:
        return min(list(self._running.values()), default=time.monotonic())

    async def run(self, environ: Environ, protocol: HTTPProtocol) -> bool:
        """Answer a request in one of the threads, and wait for that; return False if too many others wait."""
        if self._accepted >= self._lane.threads + self._lane.waiting:
            return False
        answered = asyncio.get_running_loop().create_future()
        self._accepted += 1
        try:
            self._queue.put((environ, protocol, answered))
            await answered
        finally:
            self._accepted -= 1
        return True

    def _work(self) -> None:
        thread = threading.get_ident()
        while True:
            environ, protocol, answered = self._queue.get()
            self._running[thread] = time.monotonic()
            try:
                self._answer(environ, protocol)
            except BaseException:  # of the server's, too: it must not cost the thread
                logger.exception("an answer could not be sent")
            finally:
                del self._running[thread]
                answered.get_loop().call_soon_threadsafe(answered.set_result, None)


class _Broken:
    """A body that did not arrive: for werkzeug an OSError is a client that went away, which is a 400."""

    def read(self, _size: int = -1) -> NoReturn:
        raise OSError("the body is broken")


_INTERNAL_ERROR = (
    InternalError.status.value,
    [("Content-Type", "application/json")],
    json.dumps(InternalError().body).encode(),
)

_SAME_FOR_ALL: Environ = {
    "wsgi.input": _Broken(),  # until the body has been read
    "SCRIPT_NAME": "",
    "wsgi.version": (1, 0),
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
}


def _member(environ: Environ, settings: Settings) -> str | None:
    """Return who sent a request, by its token; None without a valid one. What else they need, the app asks."""
    try:
        return member_of(environ.get("HTTP_AUTHORIZATION"), settings)
    except AppError:
        return None


def _environ(scope: Scope) -> Environ:
    """Return the WSGI environment of a request, without its body (PEP 3333)."""
    host, _, port = scope.server.rpartition(":")
    environ: Environ = {
        **_SAME_FOR_ALL,
        "wsgi.url_scheme": scope.scheme,
        "REQUEST_METHOD": scope.method,
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string.encode().decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "SERVER_NAME": host,
        "SERVER_PORT": port,
    }
    headers = scope.headers.items()
    # granian leaves out values that are not ASCII; who checks a header must not take it for none.
    headers += [(name, "\xff") for name in {*scope.headers.keys()} - {name for name, _ in headers}]
    for name, value in headers:
        if "_" in name:  # X_Request_ID would overwrite X-Request-ID
            continue
        key = name.upper().replace("-", "_")
        key = key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


async def _read_body(environ: Environ, protocol: HTTPProtocol, limit: int) -> None:
    """Wait for the body, and put it into the environment, as if it had come at once.

    One that is larger than `limit` bytes is left out, or cut off after that: the app refuses it by its length.
    """
    is_chunked = environ.pop("HTTP_TRANSFER_ENCODING", None) is not None
    length = int(environ.get("CONTENT_LENGTH", 0))
    if not is_chunked and not 0 < length <= limit:
        environ["wsgi.input"] = io.BytesIO()
        if length:
            await _discard_body(protocol)
        return
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await (_read_chunks(protocol, limit) if is_chunked else protocol())
    except (ProtocolClosed, TimeoutError):
        return
    environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}


async def _discard_body(protocol: HTTPProtocol) -> None:
    """Read what will not be used, up to the largest body there may be: who still sends would not see the answer."""
    seen = 0
    with contextlib.suppress(ProtocolClosed, ProtocolError, TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            async for part in protocol:
                seen += len(part)
                if seen > PHOTO_BYTES:
                    break


async def _read_chunks(protocol: HTTPProtocol, limit: int) -> bytearray:
    """Return a body in chunks, up to a little more than `limit` bytes.

    A malformed chunk ends it without an error: what came before is incomplete, or all there was to say.
    """
    body = bytearray()
    async for part in protocol:
        body += part
        if len(body) > limit:
            break
    return body
