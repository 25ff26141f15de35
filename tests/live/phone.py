"""A member's phone, connected to a gateway."""

import json
import queue
from typing import Any, Self

import socketio
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.factories import token

STATE = "after_hours:state"
PATIENCE_SECONDS = 60


def hello(member: str) -> str:
    """Return what a phone says first."""
    return "40" + json.dumps({"token": token(member)})


class Phone:
    """Connects as the mobile clients do, and remembers what it hears, in order."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = socketio.Client(reconnection=False)
        self._heard: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._client.on("*", lambda name, payload: self._heard.put((name, payload)))
        self._client.on("connect_error", self._refused)
        self._client.on("disconnect", lambda reason: self._heard.put(("disconnect", reason)))
        self.refusal: Any = None

    def __call__(self, token: Any) -> Self:
        """Connect, and return the phone. Raises ConnectionError when the gateway refuses; `refusal` then says why."""
        auth = {} if token is None else {"token": token}
        self._client.connect(self._url, auth=auth, transports=["websocket"], wait_timeout=PATIENCE_SECONDS)
        return self

    def next(self, seconds: float = PATIENCE_SECONDS) -> tuple[str, Any]:
        """Wait for the next event, and return its name and payload. Raises queue.Empty."""
        return self._heard.get(timeout=seconds)

    def hears(self, name: str) -> Any:
        """Wait for an event of that name, and return its payload."""
        while (event := self.next())[0] != name:
            pass
        return event[1]

    def hangs_up(self) -> None:
        self._client.disconnect()

    def _refused(self, refusal: Any) -> None:
        self.refusal = refusal


class RawPhone:
    """A WebSocket on which a test says what it likes. It reads when the test does."""

    def __init__(self, url: str, origin: str | None = None) -> None:
        address = f"{url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket"
        self.socket: ClientConnection = connect(
            address,
            additional_headers={"Origin": origin} if origin else {},
            max_queue=1,
            ping_interval=None,
            legacy=True,
        )
        assert str(self.socket.recv(PATIENCE_SECONDS)).startswith("0{")

    def says(self, text: str) -> Self:
        self.socket.send(text)
        return self

    def hears(self) -> str:
        return str(self.socket.recv(PATIENCE_SECONDS))

    def close_code(self) -> int | None:
        """Wait for the gateway to close the connection, and return the code; None if it was cut off."""
        try:
            while True:
                self.socket.recv(PATIENCE_SECONDS)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else None
