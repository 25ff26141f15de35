"""Members in a closed loop: they start, extend, end and ask, over a bounded number of connections.

Each request is recorded with the moment before it was sent and the moment after its answer was read.
"""

import collections
import contextlib
import heapq
import http.client
import itertools
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any, NamedTuple

from benchmarks.chaos.history import History

THREADS = 16
PAUSE_SECONDS = (4.0, 16.0)  # a member waits so long between two requests
TIMEOUT_SECONDS = 10.0
API = "/api/after-hours/session"
LONG_SECONDS = 30  # who has more left asks for no more, so that a run comes to its end


class Request(NamedTuple):
    """What a member asks for."""

    op: str
    minutes: int | None = None


@dataclass(order=True)
class Member:
    """A member, and until when they believe to be live."""

    wakes: float
    id: str = field(compare=False)
    token: str = field(compare=False, repr=False)
    expires: float = field(compare=False, default=0.0)


def connect(port: int) -> http.client.HTTPConnection:
    """Return a connection to a port of the loopback, which is opened by the first request."""
    return http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)


class Load:
    """All members, worked by THREADS threads."""

    def __init__(self, history: History, ports: Sequence[int], tokens: Mapping[str, str], seed: int = 0) -> None:
        self._history, self._ports = history, ports
        self._turn = itertools.count()
        now = time.monotonic()
        random = Random(seed)
        members = [Member(now + random.uniform(0, PAUSE_SECONDS[1]), *item) for item in tokens.items()]
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(members[n::THREADS], Random(f"{seed} {n}")))
            for n in range(THREADS)
        ]
        self._recent: collections.deque[tuple[float, bool]] = collections.deque(maxlen=1000)

    def start(self) -> None:
        """Let the members begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let everyone end what would last long, and wait for them."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def answers_since(self, moment: float) -> tuple[int, int]:
        """Return how many requests since `moment` were answered, and how many were not, or with 5xx."""
        outcomes = collections.Counter(good for completed, good in self._recent.copy() if completed > moment)
        return outcomes[True], outcomes[False]

    def _run(self, members: list[Member], random: Random) -> None:
        heapq.heapify(members)
        while not self._stopping.is_set():
            member = members[0]
            if self._stopping.wait(max(0.0, member.wakes - time.monotonic())):
                break
            self._send(member, choose(member, random))
            member.wakes = time.monotonic() + random.uniform(*PAUSE_SECONDS)
            heapq.heapreplace(members, member)
        for member in members:
            if member.expires - time.time() > 15:
                self._send(member, [Request("end")])

    def _send(self, member: Member, requests: Sequence[Request]) -> None:
        """Send requests at the same time, each on its own connection."""
        sent = []
        for request in requests:
            invoked = time.time()
            connection = self._connect()
            try:
                connection.request(*_http(request, member.token))
            except OSError as error:
                connection.close()
                self._record(request, member, invoked, None, _code(error))
            else:
                sent.append((request, connection, invoked))
        for request, connection, invoked in sent:
            try:
                response = connection.getresponse()
                body = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._record(request, member, invoked, None, _code(error))
            else:
                retry_after = response.getheader("Retry-After") is not None
                self._record(
                    request, member, invoked, response.status, body.get("code"), body=body, retry_after=retry_after
                )
                _learn(member, request, response.status, body)
            finally:
                connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        """Return a connection to the next API that accepts one, as a balancer does; what is sent is sent once."""
        turn = next(self._turn)
        for number in range(len(self._ports)):
            connection = connect(self._ports[(turn + number) % len(self._ports)])
            with contextlib.suppress(OSError):
                connection.connect()
                break
        return connection

    def _record(
        self,
        request: Request,
        member: Member,
        invoked: float,
        status: int | None,
        code: str | None,
        *,
        body: Any = None,
        retry_after: bool = False,
    ) -> None:
        completed = time.time()
        self._history.write(
            "op",
            **request._asdict(),
            member=member.id,
            invoked=invoked,
            completed=completed,
            status=status,
            code=code,
            retry_after=retry_after,
            body=body,
        )
        self._recent.append((completed, status is not None and status < 500))


def choose(member: Member, random: Random) -> list[Request]:
    """Return what the member does next; two requests are sent at the same time."""
    left = member.expires - time.time()
    if left > LONG_SECONDS:
        return [Request(random.choices(["status", "end"], [9, 1])[0])]
    if left > 0:
        once = [Request("status")], [Request("end")], [Request("extend", 15)], [Request("start", 15)]
        twice = [Request("extend", 15)] * 2, [Request("end"), Request("extend", 15)]
        return random.choices([*once, *twice], [45, 12, 20, 8, 10, 5])[0]
    start = Request("start", random.choices([15, 30, 60], [85, 12, 3])[0])
    others = [start, start], [Request("status")], [Request("extend", 15)], [Request("end")]
    return random.choices([[start], *others], [60, 12, 16, 6, 6])[0]


def _http(request: Request, token: str) -> tuple[str, str, bytes | None, dict[str, str]]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    if request.op == "status":
        return "GET", API, None, headers
    body: dict[str, Any] = {}
    if request.op == "start":
        body = {"duration": request.minutes, "latitude": 52.52, "longitude": 13.405}
    elif request.op == "extend":
        body = {"additionalMinutes": request.minutes}
    return "POST", f"{API}/{request.op}", json.dumps(body).encode(), headers


def _code(error: Exception) -> str:
    """Name what came instead of an answer; REFUSED alone says that nothing was done."""
    if isinstance(error, TimeoutError):
        return "TIMEOUT"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError | BlockingIOError):
        return "REFUSED"
    return "DISCONNECTED"


def _learn(member: Member, request: Request, status: int, body: Mapping[str, Any]) -> None:
    session = body.get("session")
    if session and "expiresAt" in session:
        member.expires = datetime.fromisoformat(session["expiresAt"]).timestamp()
    elif status == 404 or (status == 200 and request.op in {"end", "status"}):
        member.expires = 0.0
