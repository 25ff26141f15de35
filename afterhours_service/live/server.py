"""The server of the live gateway: uvicorn, with the gateway and the process's health on one port."""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from a2wsgi import WSGIMiddleware
from flask import Flask

from afterhours_service.config import Settings
from afterhours_service.jobs.process import on_stop_signal
from afterhours_service.live.gateway import Gateway
from afterhours_service.live.wire import MAX_FRAME_BYTES, Application, Protocol, Receive, Scope, Send
from afterhours_service.stores import watch
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

STOP_SECONDS = 5  # for connections to be closed, within the eight seconds that a process has
BACKLOG = 4096
_ELSEWHERE = "/nothing-here"  # of the API's routes the gateway serves those of its health


def run_gateway(app: Flask) -> None:
    """Serve members until SIGTERM or SIGINT; clients then connect again, to another gateway or to the next one."""
    settings: Settings = app.extensions["after_hours_settings"]
    server = make_server(app, settings.live_host, settings.live_port)
    watch.start(app)

    def stop() -> None:
        server.should_exit = True

    on_stop_signal(stop)
    logger.info("gateway started", host=settings.live_host, port=settings.live_port)
    server.run()
    logger.info("gateway stopped")


def make_server(app: Flask, host: str, port: int) -> uvicorn.Server:
    """Return a server of the gateway, not started yet."""
    return _Server(
        uvicorn.Config(
            application(app),
            host=host,
            port=port,
            ws=Protocol,
            ws_max_size=MAX_FRAME_BYTES,
            ws_per_message_deflate=False,  # it would take more memory than all the rest of a connection
            ws_ping_interval=None,  # Engine.IO has pings of its own
            lifespan="on",
            backlog=BACKLOG,
            timeout_graceful_shutdown=STOP_SECONDS,
            server_header=False,
            proxy_headers=False,
            access_log=False,
            log_config=None,
            log_level="warning",
        )
    )


def application(app: Flask) -> Application:
    """Return the ASGI application: `/socket.io/`, `/healthz`, `/readyz` and `/metrics`."""
    gateway = Gateway(app)
    socket = gateway.application()
    health: Any = WSGIMiddleware(cast("Any", app.wsgi_app), workers=2)  # it has types of its own for all this

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await gateway.start()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await gateway.stop()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await socket(scope, receive, send)
        else:
            known = scope["path"] in {"/healthz", "/readyz", "/metrics"}
            await health({**scope, "path": scope["path"] if known else _ELSEWHERE}, receive, send)

    return serve


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield
