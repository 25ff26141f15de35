"""A stretch of wire between the app and PostgreSQL, tapped: what crosses it is what a round trip costs."""

import socket
import socketserver
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from psycopg2.extensions import parse_dsn
from sqlalchemy import make_url


class Wire(socketserver.ThreadingUnixStreamServer):
    """Forwards connections to a database and records every query message: each is one round trip.

    psycopg2 speaks the simple protocol only: a query message goes out, and the answer is waited for.
    """

    daemon_threads = True

    def __init__(self, folder: Path, database_url: str) -> None:
        super().__init__(str(folder / ".s.PGSQL.5432"), _Connection)
        url = make_url(database_url).set(
            drivername="postgresql+psycopg2", host=None, port=None, query={"host": str(folder)}
        )
        self.url = url.render_as_string(hide_password=False)
        dsn = parse_dsn(database_url)
        self.target = (dsn.get("host", "localhost"), int(dsn.get("port", 5432)))
        self.queries: list[str] = []

    def connect(self) -> socket.socket:
        """Open the far end."""
        host, port = self.target
        if not host.startswith("/"):
            return socket.create_connection(self.target)
        far = socket.socket(socket.AF_UNIX)
        far.connect(f"{host}/.s.PGSQL.{port}")
        return far


class _Connection(socketserver.StreamRequestHandler):
    server: Wire

    def handle(self) -> None:
        with self.server.connect() as far, suppress(OSError):
            back = threading.Thread(target=_pump, args=(far, self.request))
            back.start()
            kind = b""  # the first message has none
            while len(length := self.rfile.read(4)) == 4:
                body = self.rfile.read(int.from_bytes(length) - 4)
                if kind == b"Q":
                    self.server.queries.append(body.rstrip(b"\0").decode())
                far.sendall(kind + length + body)
                kind = self.rfile.read(1)
            far.shutdown(socket.SHUT_RDWR)
            back.join()


def _pump(source: Any, sink: Any) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)
