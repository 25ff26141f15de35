"""`python -m benchmarks.storm`: many threads, few members, every route, and what the service does by itself.

They meet at the same few rows all the time, in every order. Nothing may deadlock, nothing may be answered by a 5xx, and
at the end the rows must agree with one another and with the answers. tests/sessions/test_storm.py runs a small one.
"""

import argparse
import io
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import psycopg2
import pyvips
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade

from afterhours_service import create_app
from afterhours_service.cleanup import service as cleanup
from afterhours_service.config import Settings
from afterhours_service.extensions import db
from afterhours_service.sessions import service as sessions
from benchmarks.load.table import table
from dev.embedded import home, postgres, stop_on_signals, valkey

API = "/api/after-hours"
SECRET = "a secret for storms, of 32 bytes or more"  # noqa: S105
PLACE = {"latitude": 52.52, "longitude": 13.405}
PHOTO: bytes = pyvips.Image.black(64, 64, bands=3).pngsave_buffer()
MINUTES = 15


class Answer(NamedTuple):
    """What was answered to whom; status 0 is an exception's, with its name as the code."""

    route: str
    status: int
    code: str


@dataclass
class Storm:
    """Sends requests of random members to an app, from many threads, and notes the answers."""

    app: Flask
    database_url: str  # to move sessions through time, and to look at the rows
    members: list[str]
    token: Callable[[str], str]
    answers: Counter[Answer] = field(default_factory=Counter)
    host: threading.Lock = field(default_factory=threading.Lock)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _minutes: Counter[str] = field(default_factory=Counter)  # by session: how long it lasts, by the answers
    _keyed: set[str] = field(default_factory=set)  # those extended with a key; a member uses but one
    _with_device: set[str] = field(default_factory=set)

    def run(self, threads: int, *, seconds: float | None = None, requests: int | None = None, seed: int = 0) -> None:
        """Send for so many seconds, or so many requests from each thread."""
        # A thread has up to two connections.
        with self.app.app_context():
            db.engine.pool._max_overflow = -1  # type: ignore[attr-defined]  # noqa: SLF001
        until = time.monotonic() + seconds if seconds is not None else None

        def send(number: int) -> None:
            chance = random.Random(seed * 1000 + number)
            client = self.app.test_client()
            sent = 0
            with closing(psycopg2.connect(self.database_url)) as connection:
                connection.autocommit = True
                while (until is None or time.monotonic() < until) and sent != requests:
                    route = chance.choices(list(ROUTES), [weight for weight, _ in ROUTES.values()])[0]
                    self._send(route, _Turn(self, client, connection, chance, chance.choice(self.members)))
                    sent += 1

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(send, range(threads)))
        with self.app.app_context():
            sessions.do_what_is_due()
            db.engine.dispose()  # a connection tells the server of its deadlocks when it closes

    def broken(self) -> Iterator[str]:
        """Yield every promise that was broken: by an answer, by the database's own account, by the rows."""
        for answer, count in sorted(self.answers.items()):
            if answer.status >= 500 or answer.status == 0:
                yield f"{answer.route}: {count} times {answer.status} {answer.code}"
        with closing(psycopg2.connect(self.database_url)) as connection, connection.cursor() as cursor:
            for promise, statement in PROMISES.items():
                cursor.execute(statement)
                [(count,)] = cursor.fetchall()
                if count:
                    yield f"{promise}: {count}"
            cursor.execute("""
                SELECT id::text, extract(epoch FROM expires_at - date_trunc('second', started_at)) / 60
                FROM after_hours_sessions""")
            for session, minutes in cursor.fetchall():
                if session in self._minutes and int(minutes) != self._minutes[session]:
                    yield f"a session lasts {minutes} minutes, not {self._minutes[session]}"
            cursor.execute("""
                SELECT id::text FROM after_hours_sessions
                EXCEPT SELECT session_id::text FROM device_fingerprints""")
            if without := self._with_device & {session for (session,) in cursor.fetchall()}:
                yield f"a fingerprint was dropped: {len(without)}"

    def _send(self, route: str, turn: "_Turn") -> None:
        try:
            status, code = ROUTES[route][1](turn)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a 500
            status, code = 0, f"{type(error).__name__} {getattr(error, 'orig', '')}".split("\n", 1)[0]
        with self._lock:
            self.answers[Answer(route, status, code)] += 1

    def started(self, session: str) -> None:
        with self._lock:
            self._minutes[session] += MINUTES
            self._with_device.add(session)

    def extended(self, session: str, key: str | None) -> None:
        with self._lock:
            if key is None or session not in self._keyed:
                self._minutes[session] += MINUTES
            if key is not None:
                self._keyed.add(session)


PROMISES = {
    "deadlocks": "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()",
    "active without consent": """
        SELECT count(*) FROM after_hours_sessions JOIN users ON users.id = user_id
        WHERE ended_at IS NULL AND after_hours_consent IS NOT TRUE""",
    "active without a profile": """
        SELECT count(*) FROM after_hours_sessions LEFT JOIN after_hours_profiles USING (user_id)
        WHERE ended_at IS NULL AND after_hours_profiles.user_id IS NULL""",
    "an ended session with a place": """
        SELECT count(*) FROM after_hours_sessions WHERE ended_at IS NOT NULL AND latitude IS NOT NULL""",
    "ended after its expiry": "SELECT count(*) FROM after_hours_sessions WHERE ended_at > expires_at",
    "a key that is behind the preferences": """
        SELECT count(*) FROM after_hours_sessions AS s
        LEFT JOIN after_hours_preferences AS w USING (user_id) LEFT JOIN profiles AS p USING (user_id)
        WHERE ended_at IS NULL AND discovery_wish IS DISTINCT FROM
            after_hours_wish(w.seeking_gender, w.min_age, w.max_age, w.max_distance_km)""",
    "a decline of a session that is not its member's": """
        SELECT count(*) FROM after_hours_declines AS d JOIN after_hours_sessions AS s ON s.id = d.session_id
        WHERE s.user_id <> d.user_id""",
}


class _Turn(NamedTuple):
    storm: Storm
    client: FlaskClient
    connection: Any
    chance: random.Random
    member: str

    def send(self, method: str, path: str, **how: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.storm.token(self.member)}", **how.pop("headers", {})}
        response = self.client.open(f"{API}{path}", method=method, headers=headers, **how)
        return response.status_code, response.json

    def execute(self, statement: str, **parameters: Any) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, {"member": self.member, **parameters})


Sent = tuple[int, str]


def _request(method: str, path: str, make: Callable[[_Turn], dict[str, Any]] = lambda _turn: {}) -> Any:
    def send(turn: _Turn) -> Sent:
        status, body = turn.send(method, path, **make(turn))
        return status, body.get("code", "")

    return send


def _start(turn: _Turn) -> Sent:
    status, body = turn.send(
        "POST", "/session/start", json={"duration": MINUTES, **PLACE, "deviceFingerprint": {"deviceId": "d"}}
    )
    if status == 201:
        turn.storm.started(body["session"]["id"])
    return status, body.get("code", "")


def _extend(turn: _Turn) -> Sent:
    """Extend; half of the time with the same key, which extends a session once."""
    headers = {"Idempotency-Key": turn.member} if turn.chance.random() < 0.5 else {}
    status, body = turn.send("POST", "/session/extend", json={"additionalMinutes": MINUTES}, headers=headers)
    if status == 200:
        turn.storm.extended(body["session"]["id"], headers.get("Idempotency-Key"))
    return status, body.get("code", "")


def _expire(turn: _Turn) -> Sent:
    """Let the member's session run out."""
    turn.execute("""
        UPDATE after_hours_sessions SET started_at = started_at - interval '7 days',
            expires_at = expires_at - interval '7 days' WHERE user_id = %(member)s AND ended_at IS NULL""")
    return 200, ""


def _age(turn: _Turn) -> Sent:
    """Let one of the member's ended sessions be old enough for the cleanup."""
    turn.execute("""
        UPDATE after_hours_sessions SET ended_at = ended_at - interval '8 days' WHERE id = (
            SELECT id FROM after_hours_sessions WHERE user_id = %(member)s AND ended_at IS NOT NULL
            LIMIT 1 FOR UPDATE SKIP LOCKED)""")
    return 200, ""


def _leave(turn: _Turn) -> Sent:
    """Let the host delete the member, and take them up anew."""
    with turn.storm.host:  # one at a time
        turn.execute("DELETE FROM users WHERE id = %(member)s")
        join(turn.connection, turn.member)
    return 200, ""


def _work(what: Callable[[], Any]) -> Callable[[_Turn], Sent]:
    def do(turn: _Turn) -> Sent:
        with turn.storm.app.app_context():
            what()
        return 200, ""

    return do


def _clean() -> None:
    with suppress(cleanup.Busy):  # one at a time; the other is told so
        cleanup.run()


def _other(turn: _Turn) -> str:
    return turn.chance.choice(turn.storm.members)


# name: (how often, how it is sent)
ROUTES: dict[str, tuple[int, Callable[[_Turn], Sent]]] = {
    "start": (12, _start),
    "end": (4, _request("POST", "/session/end")),
    "extend": (6, _extend),
    "session": (1, _request("GET", "/session")),
    "create profile": (8, _request("POST", "/profile", lambda _: {"json": {"description": "Out tonight"}})),
    "change profile": (2, _request("PATCH", "/profile", lambda _: {"json": {"description": "In tonight"}})),
    "photo": (1, _request("POST", "/profile/photo", lambda _: {"data": {"photo": (io.BytesIO(PHOTO), "p.png")}})),
    "delete photo": (1, _request("DELETE", "/profile/photo")),
    "create preferences": (6, _request("POST", "/preferences", lambda _: {"json": {"minAge": 21}})),
    "change preferences": (
        6,
        _request("PATCH", "/preferences", lambda turn: {"json": {"maxDistanceKm": turn.chance.randint(1, 200)}}),
    ),
    "nearby": (2, _request("GET", "/nearby")),
    "count": (1, _request("GET", "/nearby/count")),
    "decline": (8, _request("POST", "/declines", lambda turn: {"json": {"userId": _other(turn)}})),
    "take back": (2, lambda turn: _request("DELETE", f"/declines/{_other(turn)}")(turn)),
    "withdraw": (3, _request("PUT", "/consent", lambda _: {"json": {"granted": False}})),
    "consent": (12, _request("PUT", "/consent", lambda _: {"json": {"granted": True}})),
    "profile": (1, _request("GET", "/profile")),
    "preferences": (2, _request("GET", "/preferences")),
    "own consent": (1, _request("GET", "/consent")),
    "export": (1, _request("GET", "/me/export")),
    "erase": (3, _request("DELETE", "/me")),
    "(expire)": (2, _expire),
    "(age)": (2, _age),
    "(host deletes)": (1, _leave),
    "(timer)": (2, _work(sessions.do_what_is_due)),
    "(cleanup)": (1, _work(_clean)),
}


def join(connection: Any, member: str) -> None:
    """Make a member as the host would, who may go live once they have an After Hours profile."""
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO users (id, provider, id_verified, after_hours_consent) VALUES (%(id)s, 'storm', true, true)
               ON CONFLICT DO NOTHING""",
            {"id": member},
        )
        cursor.execute(
            "INSERT INTO user_subscriptions (user_id, is_active) SELECT id, true FROM users WHERE id = %(id)s",
            {"id": member},
        )
        cursor.execute(
            "INSERT INTO profiles (user_id, age) SELECT id, 30 FROM users WHERE id = %(id)s ON CONFLICT DO NOTHING",
            {"id": member},
        )


def main() -> None:
    """Run a storm on servers of its own, and print what was answered and what was broken."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--threads", type=int, default=20)
    arguments.add_argument("--seconds", type=float, default=20)
    arguments.add_argument("--members", type=int, default=5)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    stop_on_signals()
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="after-hours-storm-")))
        folder.chmod(0o755)
        place = running.enter_context(home(folder / "state"))
        url = running.enter_context(postgres(place))
        redis_url = running.enter_context(valkey(place, options=()))[0]
        os.environ |= {
            "DATABASE_URL": url,
            "REDIS_URL": redis_url,
            "JWT_SECRET": SECRET,
            "LOCATION_SECRET": SECRET[::-1],
            "RATELIMIT_ENABLED": "false",
            "STORAGE_FOLDER": str(folder / "photos"),
            "LOG_LEVEL": "CRITICAL",
        }
        app = create_app(Settings.from_environ())
        with app.app_context():
            upgrade()
        members = [f"member-{number}" for number in range(options.members)]
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            for member in members:
                join(connection, member)
        expiry = int(time.time()) + 86_400
        tokens = {member: jwt.encode({"userId": member, "exp": expiry}, SECRET) for member in members}
        storm = Storm(app, url, members, tokens.__getitem__)
        storm.run(options.threads, seconds=options.seconds, seed=options.seed)
        rows = [[*answer, count] for answer, count in sorted(storm.answers.items())]
        print(table(["route", "status", "code", "answers"], rows))
        log = Path(place.log.name).read_text(errors="replace")
        print(f"{storm.answers.total()} answers; 'deadlock detected' in the log: {log.count('deadlock detected')}")
        broken = list(storm.broken())
        print("\n".join(broken) or "nothing is broken")
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
