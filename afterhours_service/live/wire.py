"""A client's WebSocket: what it may say before Socket.IO hears it, how events are written to it, and how it is cut off.

A client says hello with its token, answers pings, and says goodbye. All else ends the connection.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from afterhours_service.telemetry import metrics

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_FRAME_BYTES = 4096
HELLO_SECONDS = 5.0
SLOW_SECONDS = 10.0  # a client that reads nothing for so long, while its buffer is full, is cut off
POLICY_VIOLATION = 1008

# Types of packets: Engine.IO's, and for messages Socket.IO's after it.
_CLOSE, _PONG, _CONNECT, _DISCONNECT, _EVENT = "1", "3", "40", "41", "42"
_PROTOCOL, _WIRE = "after_hours.protocol", "after_hours.wire"


class Protocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol, which also cuts off who does not read, and tells when somebody reads again."""

    _cut: asyncio.TimerHandle | None = None
    on_writable: Callable[[], None] | None = None

    async def run_asgi(self) -> None:
        """Run the application."""
        scope: Scope = self.scope  # type: ignore[assignment]
        scope[_PROTOCOL] = self
        await super().run_asgi()

    def forget_handshake(self) -> None:
        """Let go of what nobody needs any more: some KB a connection."""
        self.scope["headers"] = []
        del self.request, self.response

    def pause_writing(self) -> None:
        """Give a client whose buffer is full some time to read."""
        super().pause_writing()
        self._cut = self.loop.call_later(SLOW_SECONDS, self._cut_off)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        self._stop_waiting()
        if self.on_writable:
            self.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up."""
        self._stop_waiting()
        self.on_writable = None
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._cut:
            self._cut.cancel()
            self._cut = None

    def _cut_off(self) -> None:
        metrics.LIVE_CUT_OFF.inc()
        self.transport.abort()


class Wire:
    """One connection, between the server and Socket.IO.

    on_welcome: called when the client was told that it is connected.
    """

    __slots__ = ("_deadline", "_protocol", "_receive", "_send", "on_welcome")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._protocol: Protocol = scope[_PROTOCOL]
        self._receive, self._send = receive, send
        self._deadline: float | None = asyncio.get_running_loop().time() + HELLO_SECONDS
        self.on_welcome: Callable[[], None] | None = None

    @property
    def is_writable(self) -> bool:
        """Whether the client reads what it is sent."""
        return self._protocol.writable.is_set()

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return self._protocol.disconnected

    def when_writable(self, call: Callable[[], None]) -> None:
        """Call a function each time that the client reads again."""
        self._protocol.on_writable = call

    def abort(self) -> None:
        """End the connection at once, whatever is still to be sent."""
        self._protocol.transport.abort()

    async def write(self, name: str, payload: dict[str, Any]) -> None:
        """Send an event, past the library's queue, which has no bound; ask `is_writable` before."""
        await self._send({"type": "websocket.send", "text": _EVENT + json.dumps([name, payload])})

    async def receive(self) -> Message:
        """Return what the client says, if it may."""
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            return await self._refuse()
        if message["type"] != "websocket.receive":
            return message
        text = message.get("text") or ""
        if text in {_PONG, _CLOSE, _DISCONNECT}:
            return message
        if self._deadline is None or not _is_hello(text):
            return await self._refuse()
        self._deadline = None
        return message

    async def send(self, message: Message) -> None:
        """Send what the library says."""
        await self._send(message)
        if self.on_welcome and (message.get("text") or "").startswith(_CONNECT):
            self._protocol.forget_handshake()
            self.on_welcome()
            self.on_welcome = None

    async def _refuse(self) -> Message:
        await self._send({"type": "websocket.close", "code": POLICY_VIOLATION})
        return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}


def wired(application: Application) -> Application:
    """Return an application for WebSockets with a Wire before it."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        wire = scope[_WIRE] = Wire(scope, receive, send)
        await application(scope, wire.receive, wire.send)

    return serve


def wire_of(environ: dict[str, Any]) -> Wire:
    """Return the wire of a handshake."""
    wire: Wire = environ["asgi.scope"][_WIRE]
    return wire


def _is_hello(text: str) -> bool:
    """Return whether a packet asks to connect to the main namespace, with an object or with nothing."""
    if not text.startswith(_CONNECT):
        return False
    try:
        return isinstance(json.loads(text[len(_CONNECT) :] or "{}"), dict)
    except (ValueError, RecursionError):
        return False
