"""A member's phone as the live gateway meets it: the few frames of Socket.IO that a client needs."""

import json
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.client import connect


async def events(port: int, token: str) -> AsyncIterator[tuple[str, Any]]:
    """Connect, and yield each event's name and payload until the connection closes; the first is the state.

    Raises ConnectionRefusedError when the gateway refuses the token, OSError or WebSocketException when it is away.
    """
    address = f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket"
    async with connect(address, compression=None, ping_interval=None, open_timeout=60) as socket:
        async for frame in socket:
            packet = str(frame)
            if packet.startswith("0"):
                await socket.send("40" + json.dumps({"token": token}))
            elif packet == "2":
                await socket.send("3")
            elif packet.startswith("44"):
                raise ConnectionRefusedError(packet)
            elif packet.startswith("42"):
                name, payload = json.loads(packet[2:])
                yield name, payload
