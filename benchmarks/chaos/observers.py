"""Who looks on: the subscriber hears events, as the host's chat service does; phones, as members; the probe looks."""

import asyncio
import contextlib
import json
import random
import threading
import time
from typing import Any, NamedTuple, cast

import psycopg2
from redis.exceptions import RedisError
from websockets.exceptions import WebSocketException

from benchmarks import phones
from benchmarks.chaos.checker import epoch
from benchmarks.chaos.history import History
from benchmarks.chaos.stack import Stack

CHANNEL = "after_hours:events"
SCHEDULED = "rq:scheduler:scheduled_jobs"
PROBE_SECONDS = 0.5
GRACE_SECONDS = 2.0  # what is so late is late
WARNING_SECONDS = 2
PHONES = 200
RECONNECT_SECONDS = 0.5
SILENCE_SECONDS = 0.5  # after which Redis is asked whether it is still there

_EXPIRIES = """
    SELECT DISTINCT ceil(extract(epoch FROM expires_at))::bigint, extract(epoch FROM clock_timestamp())::float
    FROM after_hours_sessions WHERE ended_at IS NULL AND expires_at > clock_timestamp() + interval '1 second'
"""
_OVERDUE = """
    SELECT count(*) FROM after_hours_sessions
    WHERE ended_at IS NULL AND expires_at <= clock_timestamp() - %(grace)s * interval '1 second'
"""
_TOLD = """
    SELECT id::text FROM after_hours_sessions
    WHERE ended_at = expires_at AND expires_at BETWEEN to_timestamp(%(since)s) AND to_timestamp(%(until)s)
"""


class Observer:
    """A thread that looks again and again until it is stopped."""

    def __init__(self, stack: Stack, history: History) -> None:
        self._stack, self._history = stack, history
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        raise NotImplementedError


class Subscriber(Observer):
    """Hears every event; comes back at once when Redis does."""

    def __init__(self, stack: Stack, history: History) -> None:
        super().__init__(stack, history)
        self.heard: set[str] = set()  # sessions whose expiry was published
        self.connected_since = 0.0

    def _run(self) -> None:
        client = self._stack.redis()
        while not self._stopping.is_set():
            with contextlib.suppress(RedisError), client.pubsub() as subscription:  # type: ignore[no-untyped-call]
                subscription.subscribe(CHANNEL)
                while not self._stopping.is_set() and self._listen(subscription):
                    pass
            if self.connected_since:
                self._history.mark("subscriber", connected=False)
            self.connected_since = 0.0
            client.connection_pool.disconnect()
            time.sleep(0.005)

    def _listen(self, subscription: Any) -> bool:
        """Hear what comes next. Return whether Redis is still there: it answers when it is asked."""
        message = subscription.get_message(timeout=SILENCE_SECONDS)
        if message is None:
            subscription.ping()
            message = subscription.get_message(timeout=SILENCE_SECONDS)
        if message:
            self._hear(message)
        return message is not None

    def _hear(self, message: dict[str, Any]) -> None:
        if message["type"] == "pong":
            return
        if message["type"] == "subscribe":
            self.connected_since = self._history.mark("subscriber", connected=True)
            return
        event = json.loads(message["data"])
        self._history.mark("event", type=event["type"], member=event["targetUserId"], payload=event["payload"])
        if event["type"] == "after_hours:session_expired":
            self.heard.add(event["payload"]["sessionId"])


_ACTIVE = "SELECT user_id, id::text FROM after_hours_sessions WHERE ended_at IS NULL AND expires_at > now()"

# A member's live matches, and their active sessions. The match is judged by the later moment: its end is stored with
# the moment at which it is written, which may be after that at which this statement arrived.
_MATCHES = """
    WITH matched AS (
        SELECT member, count(*) AS matches, bool_or(NOT EXISTS (
            SELECT FROM after_hours_sessions AS s
            WHERE s.user_id = member AND ended_at IS NULL AND s.expires_at > statement_timestamp())) AS is_over
        FROM after_hours_matches AS m CROSS JOIN LATERAL (VALUES (user_id_1), (user_id_2)) AS v (member)
        WHERE declined_by IS NULL AND expires_at > clock_timestamp() GROUP BY member
    )
    SELECT count(*) FILTER (WHERE matches > 1), count(*) FILTER (WHERE is_over) FROM matched
"""


class Look(NamedTuple):
    """What the probe saw."""

    at: float
    missing: list[int]  # whole seconds that lack a timer
    overdue: int  # sessions that ran out, and that nobody ended
    unpublished: int  # expired sessions whose event was not heard
    twice: int  # members in two live matches
    outliving: int  # live matches of which a member's session is over
    untold: list[str]  # members whose connected client shows another session than they have


class Phones(Observer):
    """Members who are connected to the gateway, and what their clients show; they connect again at once."""

    def __init__(self, stack: Stack, history: History) -> None:
        super().__init__(stack, history)
        self._shown: dict[str, tuple[str, float] | None] = {}  # of those who are connected and know

    def _run(self) -> None:
        asyncio.run(self._connect_all())

    def session_of(self) -> dict[str, str | None]:
        """Return which session each connected client shows now; one that has run out is not shown any more."""
        now = time.time()
        shown = list(self._shown.items())
        return {member: session[0] if session and session[1] > now else None for member, session in shown}

    async def _connect_all(self) -> None:
        members = list(self._stack.tokens)[:PHONES]
        tasks = [asyncio.create_task(self._stay_connected(member)) for member in members]
        while not self._stopping.is_set():
            await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()

    async def _stay_connected(self, member: str) -> None:
        while True:
            with contextlib.suppress(OSError, WebSocketException):
                async for name, payload in phones.events(
                    random.choice(self._stack.live_ports), self._stack.tokens[member]
                ):
                    self._hear(member, name, payload)
            self._shown.pop(member, None)
            await asyncio.sleep(RECONNECT_SECONDS)

    def _hear(self, member: str, name: str, payload: dict[str, Any]) -> None:
        if name == "after_hours:state":
            session = payload["session"]
            self._shown[member] = session and (session["id"], epoch(session["expiresAt"]))
        elif name in {"after_hours:session_started", "after_hours:session_extended"}:
            self._shown[member] = payload["sessionId"], epoch(payload["expiresAt"])
        elif name in {"after_hours:session_ended", "after_hours:session_expired"}:
            shown = self._shown.get(member)
            if shown and shown[0] == payload["sessionId"]:
                self._shown[member] = None


class Probe(Observer):
    """Compares the sessions in the database with the timers in Redis, and with the events heard."""

    def __init__(self, stack: Stack, history: History, subscriber: Subscriber, phones: Phones) -> None:
        super().__init__(stack, history)
        self._subscriber, self._phones = subscriber, phones
        self.last: Look | None = None

    def _run(self) -> None:
        while not self._stopping.wait(PROBE_SECONDS):
            try:
                self.last = self.look()
            except (psycopg2.Error, RedisError):
                self.last = None
            else:
                seen = self.last
                found = {key: getattr(seen, key) for key in ("at", "missing", "twice", "outliving", "untold")}
                self._history.write("probe", **found)

    def look(self) -> Look:
        """Look once. Raises psycopg2.Error or RedisError."""
        at = time.time()
        with contextlib.closing(self._stack.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(_OVERDUE, {"grace": GRACE_SECONDS})
            [(overdue,)] = cursor.fetchall()
            cursor.execute(_TOLD, {"since": self._subscriber.connected_since, "until": at - GRACE_SECONDS})
            unpublished = {session for (session,) in cursor} - self._subscriber.heard
            cursor.execute(_EXPIRIES)
            expiries = cursor.fetchall()
            cursor.execute(_MATCHES)
            [(twice, outliving)] = cursor.fetchall()
            cursor.execute(_ACTIVE)
            active = dict(cursor.fetchall())
            untold = [member for member, session in self._phones.session_of().items() if active.get(member) != session]
        needed = {second for second, _ in expiries}
        needed |= {second - WARNING_SECONDS for second, now in expiries if second - WARNING_SECONDS > now + 1}
        return Look(at, sorted(needed - self._armed()), overdue, len(unpublished), twice, outliving, untold)

    def _armed(self) -> set[int]:
        """Return the seconds that have a timer, and a job for it."""
        with self._stack.redis() as redis:
            scheduled = cast("list[bytes]", redis.zrange(SCHEDULED, 0, -1))
            ids = [raw.decode() for raw in scheduled if raw.startswith(b"session-timer-")]
            pipeline = redis.pipeline(transaction=False)
            for timer_id in ids:
                pipeline.exists(f"rq:job:{timer_id}")
            seconds = [timer_id.split("-")[2] for timer_id, there in zip(ids, pipeline.execute(), strict=True) if there]
            return {int(second) for second in seconds if second.isdigit()}
