"""The page of `make run`: two phones and the engine room, from `dev/static`. It is not part of the service.

It hands out the demo members' tokens and breaks things, so it answers on the loopback only, and only to its own page.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, abort, request
from redis import Redis
from werkzeug.serving import make_server

from afterhours_service.config import Settings
from afterhours_service.jobs.events import CHANNEL
from afterhours_service.monitoring.status import Status, current_status
from afterhours_service.stores.redis import current_redis
from dev import demo
from dev.processes import Processes

HOST = "127.0.0.1"
HEARTBEAT_SECONDS = 5.0


@contextmanager
def page(service: Flask, port: int, processes: Processes, *, may_empty_redis: bool) -> Iterator[str]:
    """Serve the page on a port, from a thread, and yield its address."""
    app = make_page(service, processes, may_empty_redis=may_empty_redis)
    server = make_server(HOST, port, app, threaded=True)
    server.daemon_threads = True  # type: ignore[attr-defined]  # a browser listens to events for ever
    thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{port}/demo/"
    finally:
        server.shutdown()
        thread.join()


def make_page(service: Flask, processes: Processes, *, may_empty_redis: bool) -> Flask:
    """Return the app that serves the page. service: the app of the service, for its settings and its stores."""
    settings: Settings = service.extensions["after_hours_settings"]
    api, live = settings.public_url, f"{HOST}:{settings.live_port}"
    app = Flask(__name__, static_url_path="/demo")

    @app.before_request
    def only_for_its_own_page() -> None:
        # Another site's page could send requests here, or by a name of its own (DNS rebinding).
        if request.host.partition(":")[0] not in {HOST, "localhost"}:
            abort(403)
        if request.method == "POST" and request.headers.get("X-Demo") is None:
            abort(403)

    @app.after_request
    def close_to_others(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = (
            f"default-src 'self'; connect-src 'self' {api} ws://{live}; img-src 'self' data: {api}"
        )
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/demo/")
    @app.get("/demo")
    def index() -> Response:
        return app.send_static_file("index.html")

    @app.get("/demo/members")
    def members() -> dict[str, Any]:
        known = [{"id": each.id, "name": each.name, "token": demo.token(each.id, settings)} for each in demo.MEMBERS]
        return {
            "members": known,
            "api": f"{api}/api/after-hours",
            "live": f"ws://{live}",
            "minuteSeconds": settings.minute_seconds,
        }

    _add_engine_room(app, service, processes, may_empty_redis=may_empty_redis)
    return app


def _add_engine_room(app: Flask, service: Flask, processes: Processes, *, may_empty_redis: bool) -> None:
    @app.get("/demo/engine")
    def engine() -> dict[str, Any]:
        with service.app_context():
            status = current_status()
        return {"figures": _figures(status, processes), "actions": _possible(processes, may_empty_redis)}

    @app.post("/demo/engine/<action>")
    def act(action: str) -> dict[str, Any]:
        if action not in _possible(processes, may_empty_redis):
            abort(409)
        with service.app_context():
            _ACTIONS[action](processes)
        return {}

    @app.get("/demo/events")
    def events() -> Response:
        with service.app_context():
            redis = current_redis()
        return Response(_stream(redis), mimetype="text/event-stream")


def _empty_redis(_: Processes) -> None:
    current_redis().flushdb()


_ACTIONS: dict[str, Callable[[Processes], None]] = {
    "stop-worker": lambda processes: processes.end("worker", signal.SIGTERM),
    "start-worker": lambda processes: processes.start("worker"),
    "kill-scheduler": lambda processes: processes.end("scheduler", signal.SIGKILL),
    "start-scheduler": lambda processes: processes.start("scheduler"),
    "empty-redis": _empty_redis,
}


def _possible(processes: Processes, may_empty_redis: bool) -> list[str]:
    return [
        "stop-worker" if processes.is_running("worker") else "start-worker",
        "kill-scheduler" if processes.is_running("scheduler") else "start-scheduler",
        *(["empty-redis"] if may_empty_redis else []),
    ]


def _figures(status: Status, processes: Processes) -> dict[str, str]:
    """Return what the engine room shows, by its name there."""
    run = status.runs.get("reconcile")
    looked = (
        datetime.fromtimestamp(run.finished_at, UTC).strftime("%H:%M:%S UTC") if run and run.finished_at else "none"
    )
    return {
        "Active sessions": str(status.sessions.active) if status.sessions else "unknown",
        "Live matches": str(status.search.matches) if status.search else "unknown",
        "Armed timers": "unknown" if status.timers is None else str(status.timers),
        "Last reconciliation": looked,
        **{
            name.title(): "runs" if processes.is_running(name) else "stopped"
            for name in ("worker", "scheduler", "live")
        },
    }


def _stream(redis: Redis) -> Iterator[str]:
    """Yield each event of the service as a server-sent event, and a comment from time to time."""
    with redis.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
        channel.subscribe(CHANNEL)
        while True:
            message = channel.get_message(timeout=HEARTBEAT_SECONDS)
            yield f"data: {message['data'].decode()}\n\n" if message else ": still here\n\n"
