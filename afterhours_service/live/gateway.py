"""The gateway: lets members in, delivers their events, and brings clients up to date who may have missed some.

One subscription to Redis serves all connections. The database is the truth: whoever may have missed an event is sent
the state that it has. Its questions run in threads; everything else runs on the event loop.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import socketio
from flask import Flask
from redis.asyncio.client import PubSub
from socketio.exceptions import ConnectionRefusedError as RefusedError
from uvicorn.protocols.utils import ClientDisconnected

from afterhours_service.config import Settings
from afterhours_service.jobs.events import CHANNEL
from afterhours_service.live import state
from afterhours_service.live.connections import STATE, Connection, Connections, Event
from afterhours_service.live.queries import present
from afterhours_service.live.wire import MAX_FRAME_BYTES, Application, wire_of, wired
from afterhours_service.stores import redis
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import get_logger
from afterhours_service.web import errors, gate

T = TypeVar("T")

logger = get_logger(__name__)
_library = logging.getLogger(f"{__name__}.socketio")
_library.setLevel(logging.ERROR)  # at INFO it would log what is sent

THREADS = 4  # that ask the database
TICK_SECONDS = 1.0
CHECK_SECONDS = 10.0  # between two looks at everybody: may they be connected, and is what they show true?
RETRY_SECONDS = 1.0
SILENCE_SECONDS = 2.0  # after which Redis is asked whether it is still there, and then given up
GOODBYE_SECONDS = 1.0  # for a client to hear why it is disconnected
WAITING_EVENTS = 100  # for one connection


class Gateway:
    """The gateway of one process."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._settings: Settings = app.extensions["after_hours_settings"]
        self._pool = ThreadPoolExecutor(THREADS, "live")
        self._connections = Connections()
        self._told: set[str] = set()  # members of recent events: these may be about their right to be connected
        self._checked_at = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sio = socketio.AsyncServer(
            async_mode="asgi",
            transports=["websocket"],
            max_http_buffer_size=MAX_FRAME_BYTES,
            cors_allowed_origins=self._may_connect,
            logger=_library,
            engineio_logger=_library,
            monitor_clients=False,  # a client that does not answer pings is noticed without
        )
        self._sio.on("connect", self._connect)
        self._sio.on("disconnect", self._disconnect)

    def application(self) -> Application:
        """Return the ASGI application for WebSockets."""
        return wired(socketio.ASGIApp(self._sio))

    def _may_connect(self, origin: str | None, environ: dict[str, Any]) -> bool:
        """Return whether a page of that origin may connect. Clients that are no pages send none, or our own."""
        is_ours = origin is None or origin.partition("://")[2] == environ.get("HTTP_HOST")
        return is_ours or origin in self._settings.cors_origins

    async def start(self) -> None:
        """Listen to Redis, and keep watch, until `stop`."""
        self._begin(self._listen())
        self._begin(self._watch())

    async def stop(self) -> None:
        """Stop listening."""
        for task in self._tasks:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _connect(self, connection_id: str, environ: dict[str, Any], auth: dict[str, Any] | None = None) -> None:
        wire = wire_of(environ)
        for key in [key for key in environ if not key.startswith("asgi.")]:
            del environ[key]  # it is kept as long as the connection; nobody needs the headers any more
        try:
            token = (auth or {}).get("token")
            if not isinstance(token, str) or not token:
                raise errors.AuthRequired
            member = gate.read_token(token, self._settings)
            connection = Connection(connection_id, member.member_id, member.expires_at, wire, waiting=[])
            for oldest in self._connections.add(connection):
                self._end(oldest, "too many connections")
            try:
                found = await self._ask(state.admit, member.member_id)
            except errors.AppError:
                self._connections.remove(connection_id)
                raise
            except Exception as error:
                self._connections.remove(connection_id)
                logger.warning("member could not be let in", error=type(error).__name__)
                raise errors.AuthUnavailable from error
        except errors.AppError as failure:
            metrics.LIVE_CONNECTS.labels(failure.code).inc()
            asyncio.get_running_loop().call_later(GOODBYE_SECONDS, wire.abort)
            raise RefusedError(failure.body["error"], failure.body) from failure
        metrics.LIVE_CONNECTS.labels("").inc()
        wire.on_welcome = lambda: self._begin(self._tell_state(connection, found))
        wire.when_writable(lambda: self._refresh([connection]))

    async def _disconnect(self, connection_id: str, _reason: str) -> None:
        self._connections.remove(connection_id)

    async def _listen(self) -> None:
        """Deliver events; after each interruption bring everybody up to date."""
        client = redis.subscriber(self._settings)
        while True:
            try:
                async with client.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    while message := await self._next_message(channel):
                        if message["type"] == "subscribe":
                            metrics.LIVE_SUBSCRIBED.set(1)
                            self._refresh(self._connections)
                        elif message["type"] == "message":
                            await self._deliver(message["data"])
                logger.warning("subscription lost: Redis does not answer")
            except Exception as error:  # noqa: BLE001 - if this task ended, nobody would hear anything any more
                logger.warning("subscription lost", error=type(error).__name__)
            metrics.LIVE_SUBSCRIBED.set(0)
            await asyncio.sleep(RETRY_SECONDS)

    async def _next_message(self, channel: PubSub) -> dict[str, Any] | None:
        """Return what Redis says next; None if it does not even answer a ping."""
        message: dict[str, Any] | None = await channel.get_message(timeout=SILENCE_SECONDS)
        if message is None:
            await channel.ping()
            message = await channel.get_message(timeout=SILENCE_SECONDS)
        return message

    async def _deliver(self, data: bytes) -> None:
        """Send an event to its member's connections."""
        try:
            message = json.loads(data)
            member_id, event = str(message["targetUserId"]), (str(message["type"]), dict(message["payload"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            logger.warning("not an event")
            return
        for connection in self._connections.of(member_id):
            connection.note(event)
            self._told.add(member_id)
            if connection.waiting is None:
                await self._emit(connection, event)
            elif len(connection.waiting) < WAITING_EVENTS:
                connection.waiting.append(event)
            else:
                connection.wire.abort()

    def _refresh(self, connections: Iterable[Connection]) -> None:
        """Send the state to clients that may have missed something."""
        for connection in connections:
            connection.is_stale = True
            if connection.waiting is None:
                connection.waiting = []
                self._begin(self._tell_state(connection))

    async def _tell_state(self, connection: Connection, found: dict[str, Any] | None = None) -> None:
        """Send the state, and then the events that came meanwhile; until the database answers, try again."""
        while found is None or connection.is_stale:
            if connection not in self._connections:
                return
            connection.is_stale = False
            try:
                found = await self._ask(state.read, connection.member_id)
            except Exception as error:  # noqa: BLE001 - the client waits for the state, whatever failed
                logger.warning("state could not be read", error=type(error).__name__)
                connection.is_stale = True
                await asyncio.sleep(RETRY_SECONDS)
        metrics.LIVE_STATES.inc()
        waiting, connection.waiting = connection.waiting or [], None
        for event in ((STATE, found), *waiting):
            connection.note(event)
            await self._emit(connection, event)

    async def _emit(self, connection: Connection, event: Event) -> None:
        if not connection.wire.is_writable:
            return  # it is told the state once it reads again
        with contextlib.suppress(ClientDisconnected):
            await connection.wire.write(*event)
        metrics.LIVE_DELIVERED.inc()

    async def _watch(self) -> None:
        """Every second: end the connections of members who may not be connected any more; notice missed ends."""
        while True:
            metrics.LIVE_CONNECTIONS.set(len(self._connections))
            await asyncio.sleep(TICK_SECONDS)
            now = time.time()
            for connection in self._connections:
                if connection.wire.is_lost:  # while it was being let in
                    self._connections.remove(connection.id)
                elif connection.token_expires_at <= now:
                    self._end(connection, "token expired")
                elif connection.is_overdue(now):
                    self._refresh([connection])
            try:
                await self._check()
            except Exception as error:  # noqa: BLE001 - the next look is in a second
                logger.warning("members could not be checked", error=type(error).__name__)

    async def _check(self) -> None:
        """Look at members with an event, and from time to time at all: an event of theirs may have been lost."""
        members: Collection[str] = self._told
        if everybody := time.monotonic() - self._checked_at > CHECK_SECONDS:
            members = self._connections.members()
            self._checked_at = time.monotonic()
        self._told = set()
        if not members:
            return
        found = {each.member_id: each for each in await self._ask(present, members)}
        for member_id in members:
            for connection in self._connections.of(member_id):
                if member_id not in found:
                    self._end(connection, "barred")
                elif everybody and connection.waiting is None and connection.differs(found[member_id]):
                    self._refresh([connection])

    def _end(self, connection: Connection, reason: str) -> None:
        """End a connection: the client is told that it shall not come back by itself."""
        logger.info("connection ended", reason=reason)
        metrics.LIVE_ENDED.labels(reason).inc()
        self._connections.remove(connection.id)
        self._begin(self._say_goodbye(connection))

    async def _say_goodbye(self, connection: Connection) -> None:
        await self._sio.disconnect(connection.id)
        await asyncio.sleep(GOODBYE_SECONDS)
        connection.wire.abort()

    async def _ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Run a question to the database in a thread, within the app's context."""

        def ask() -> T:
            with self._app.app_context():
                return question(*arguments)

        return await asyncio.get_running_loop().run_in_executor(self._pool, ask)

    def _begin(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
