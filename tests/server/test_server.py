"""The API's server on a real socket: what it refuses, whom it lets wait, and how it stops, reloads and recovers."""

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2
import pytest

from afterhours_service.server.application import MEMBERS
from afterhours_service.server.master import MEMORY, PREFIX
from afterhours_service.server.worker import HUNG_SECONDS
from tests.factories import SECRET, Factory, bearer
from tests.processes import Process, Processes, environ
from tests.stopwatch import eventually

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("server")]

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: api\r\n"
CONSENT = "/api/after-hours/consent"
PHOTO = "/api/after-hours/profile/photo"
STOP_SECONDS = 8


class Server(NamedTuple):
    """A running API, its members, and a connection to its database that locks what a test wants locked."""

    process: Process
    port: int
    factory: Factory
    database: Any

    def raw(self, data: bytes, answers: int = 1) -> bytes:
        """Send bytes on a connection of their own, and return what comes back until the end, or until the answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            told = b""
            while part := connection.recv(65536):
                told += part
                heads = told.split(b"\r\n\r\n")
                lengths = [int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]) for head in heads[:1]]
                if told.count(b"HTTP/1.") >= answers and len(heads[-1]) >= (lengths[0] if answers == 1 else 1):
                    break
            return told

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> http.client.HTTPResponse:
        """Send a request on a connection of its own, and return the answer, with its body in `text`."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.text = answer.read().decode()  # type: ignore[attr-defined]
            return answer

    def member_asks(self, member: str, path: str = "/api/after-hours/session", **others: Any) -> Any:
        return self.ask(path, **others, **bearer(member))

    @contextlib.contextmanager
    def slow_database(self) -> Iterator[None]:
        """Let nothing be read about members."""
        with self.database.cursor() as cursor:
            cursor.execute("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            try:
                yield
            finally:
                cursor.execute("ROLLBACK")


@pytest.fixture(scope="module")
def start(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Return what starts an API with two workers."""
    settings = environ(module_database_url, RATELIMIT_ENABLED="false", WEB_CONCURRENCY="2", METRICS_TOKEN=SECRET * 2)
    settings["REDIS_URL"] = "unix:///nonexistent"  # none of this needs Redis
    with (
        Processes(tmp_path_factory.mktemp("server"), settings) as run,
        contextlib.closing(psycopg2.connect(module_database_url)) as database,
        contextlib.closing(psycopg2.connect(module_database_url)) as lock,
    ):
        database.autocommit = lock.autocommit = True

        def start() -> Server:
            process, url = run.web()
            return Server(process, int(url.split(":")[2].split("/")[0]), Factory(database), lock)

        yield start


@pytest.fixture(scope="module")
def server(start: Callable[..., Server]) -> Server:
    """Return an API that no test ends."""
    return start()


@pytest.fixture
def own(start: Callable[..., Server]) -> Iterator[Server]:
    """Return an API for one test."""
    server = start()
    yield server
    server.process.kill()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (HEALTH + b"X-Long: %s\r\n\r\n" % (b"x" * 20_000), 431),
        (HEALTH.replace(b"healthz", b"healthz?" + b"x" * 20_000) + b"\r\n", 431),
        (HEALTH.replace(b"healthz", b"healthz?" + b"x" * 80_000) + b"\r\n", 431),
        (HEALTH + b"".join(b"X-%d: x\r\n" % number for number in range(120)) + b"\r\n", 431),
        (HEALTH + b"Content-Length: -1\r\n\r\n", 400),
        (HEALTH + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
        (HEALTH + b"Content-Length: 1%s\r\n\r\n" % (b"0" * 30), 400),
        (HEALTH.replace(b"/1.1", b"/9.9") + b"\r\n", 400),
    ],
    ids=["nonsense", "header", "line", "longer line", "headers", "length", "two lengths", "huge length", "version"],
)
def test_what_is_no_request_is_refused_in_no_words_of_the_servers_own(server: Server, data: bytes, status: int) -> None:
    head, _, body = server.raw(data).partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert int(lines[0].split()[1]) == status
    assert {line.partition(b":")[0] for line in lines[1:]} <= {b"connection", b"content-length", b"date"}
    assert body == b""


def test_a_head_of_fifteen_kilobytes_is_read(server: Server) -> None:
    answer = server.raw(HEALTH + b"X-Long: %s\r\n\r\n" % (b"x" * 15_000))
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", [CONSENT, PHOTO])
@pytest.mark.parametrize(
    "body",
    [b"ZZ\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\nZZ\r\nabc\r\n0\r\n\r\n", b"3\r\nabcdef\r\n0\r\n\r\n"],
    ids=["first", "second", "length"],
)
def test_broken_chunks_are_the_clients_fault(server: Server, path: str, body: bytes) -> None:
    member = server.factory.member()
    kind = "application/json" if path == CONSENT else "multipart/form-data; boundary=x"
    method = "PUT" if path == CONSENT else "POST"
    head = f"{method} {path} HTTP/1.1\r\nHost: api\r\nAuthorization: {bearer(member)['Authorization']}\r\n"
    head += f"Content-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = server.raw(head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["success"] is False


def test_a_body_in_chunks_is_read(server: Server) -> None:
    member = server.factory.member(consent=False)
    parts = iter([b'{"granted"', b": true}"])
    answer = server.member_asks(member, CONSENT, method="PUT", body=parts, **{"Content-Type": "application/json"})
    assert (answer.status, json.loads(answer.text)["success"]) == (200, True)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_a_body_that_is_too_large_is_refused(server: Server, chunked: bool) -> None:
    member = server.factory.member()
    body: Any = iter([b"x" * 1000] * 100) if chunked else b"x" * 100_000
    answer = server.member_asks(member, CONSENT, method="PUT", body=body, **{"Content-Type": "application/json"})
    assert (answer.status, json.loads(answer.text)["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_a_request_whose_body_did_not_arrive_changes_nothing(server: Server) -> None:
    member = server.factory.member(consent=False)
    body = b'{"granted": true}'
    head = f"PUT {CONSENT} HTTP/1.1\r\nHost: api\r\nAuthorization: {bearer(member)['Authorization']}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body) + 1}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ") or not answer
    [(consent,)] = server.factory.execute("SELECT after_hours_consent FROM users WHERE id = %s", member)
    assert consent is False


@pytest.mark.parametrize(
    "target",
    ["//evil.example/x", "/api//after-hours//session", "/api/after-hours/session/", "http://evil.example/api//x"],
)
def test_nobody_is_sent_to_a_host_that_the_client_named(server: Server, target: str) -> None:
    answer = server.raw(f"GET {target} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode()).lower()
    assert answer.startswith(b"http/1.1 404 ")
    assert b"location:" not in answer
    assert b"<html" not in answer


@pytest.mark.parametrize("header", ["SCRIPT_NAME", "Script-Name", "X-Script-Name", "X_Request_ID", "X-Forwarded-Host"])
def test_no_header_changes_where_the_app_is(server: Server, header: str) -> None:
    answer = server.raw(HEALTH + f"{header}: /elsewhere\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"elsewhere" not in answer


def test_old_clients_are_answered(server: Server) -> None:
    answer = server.raw(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 ")
    assert answer.endswith(b'"success":true}\n')


def test_a_connection_is_kept_and_requests_on_it_are_answered_in_order(server: Server) -> None:
    first, second = HEALTH + b"X-Request-ID: one\r\n\r\n", HEALTH.replace(b"health", b"ready")
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        for _ in range(3):
            connection.sendall(first + second + b"X-Request-ID: two\r\n\r\n")
            told = b""
            while told.count(b'"success":true}') < 2:
                told += connection.recv(65536)
            ids = [line for line in told.split(b"\r\n") if line.startswith(b"x-request-id")]
            assert ids == [b"x-request-id: one", b"x-request-id: two"]


def test_the_server_tells_nobody_whose_program_it_is(server: Server) -> None:
    answer = server.raw(HEALTH + b"\r\n").lower()
    assert answer.count(b"server: after-hours") == 1
    assert b"granian" not in answer


def test_half_sent_requests_hold_up_nobody(server: Server) -> None:
    with contextlib.ExitStack() as waiting:
        for number in range(80):
            connection = waiting.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(f"POST {PHOTO if number % 4 < 2 else CONSENT} HTTP/1.1\r\nHost: api\r\n".encode())
            connection.sendall(b"Content-Length: 1000\r\n\r\nabc" if number % 2 else b"X-")
        member = server.factory.member()
        for _ in range(10):
            assert server.member_asks(member).status == 200
            assert server.ask("/readyz").status == 200


def test_a_large_upload_holds_up_nobody(server: Server) -> None:
    slow, other = server.factory.member(), server.factory.member()
    form = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="x"\r\n\r\n%b\r\n--x--\r\n'
    body = form % (b"\xff\xd8\xff" + os.urandom(10_000_000))
    head = f"POST {PHOTO} HTTP/1.1\r\nHost: api\r\nAuthorization: {bearer(slow)['Authorization']}\r\n"
    head += f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode())
        for part in range(0, len(body), 1_000_000):
            connection.sendall(body[part : part + 1_000_000])
            assert server.member_asks(other).status == 200
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"INVALID_IMAGE" in answer


@pytest.mark.parametrize(("path", "status"), [(PHOTO, 401), ("/api/after-hours/session/end", 401), ("/nowhere", 404)])
def test_who_sends_a_body_in_vain_reads_why(server: Server, path: str, status: int) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: api\r\nContent-Length: 8000000\r\n\r\n".encode())
            connection.sendall(b"x" * 8_000_000)
            assert connection.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())


def test_a_member_uploads_two_photos_at_a_time_and_removes_one_beside_them(server: Server) -> None:
    member, other = server.factory.member(), server.factory.member()
    head = f"POST {PHOTO} HTTP/1.1\r\nHost: api\r\nAuthorization: {bearer(member)['Authorization']}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
    with contextlib.ExitStack() as waiting:
        for _ in range(60):  # so that each worker has more than a few
            connection = waiting.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            connection.sendall(head.encode())
        for _ in range(6):
            assert server.member_asks(other, PHOTO, method="POST").status == 400
            assert server.member_asks(member, PHOTO, method="DELETE").status == 200


@pytest.mark.parametrize("query", ["?q=I\u2019m", "?q=\u00e9", "?q=%E2%80%99"])
def test_a_query_of_any_characters_is_read(server: Server, query: str) -> None:
    answer = server.raw(f"GET /healthz{query} HTTP/1.1\r\nHost: api\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))


def test_a_header_that_is_not_ascii_is_not_taken_for_none(server: Server) -> None:
    member = server.factory.member()
    server.factory.session(member)
    head = "POST /api/after-hours/session/extend HTTP/1.1\r\nHost: api\r\nIdempotency-Key: \u00e9\r\n"
    head += f"Authorization: {bearer(member)['Authorization']}\r\nContent-Type: application/json\r\n"
    head += 'Content-Length: 25\r\n\r\n{"additionalMinutes": 15} '
    assert server.raw(head.encode()).startswith(b"HTTP/1.1 400 ")


def test_clients_that_leave_before_their_answer_cost_no_thread(server: Server) -> None:
    member = server.factory.member()
    head = "GET /api/after-hours/session HTTP/1.1\r\nHost: api\r\n"
    head += f"Authorization: {bearer(member)['Authorization']}\r\n\r\n"
    with server.slow_database(), contextlib.ExitStack() as leaving:
        for _ in range(4 * MEMBERS.threads):
            leaving.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(head.encode())
        eventually(lambda: server.factory.waiting() >= MEMBERS.threads)
    for _ in range(4 * MEMBERS.threads):
        assert server.member_asks(member).status == 200


def test_too_many_requests_for_a_slow_database_are_refused_and_probes_are_not(server: Server) -> None:
    member = server.factory.member()
    per_worker = MEMBERS.threads + MEMBERS.waiting
    statuses: Counter[tuple[int, str | None]] = Counter()
    lock = threading.Lock()

    def ask() -> None:
        answer = server.member_asks(member)
        assert answer.getheader("X-Request-ID")
        with lock:
            statuses[answer.status, answer.getheader("Retry-After")] += 1

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2 * per_worker + 40)]
    with server.slow_database():
        for thread in threads:
            thread.start()
        assert server.ask("/healthz").status == 200
        assert server.ask("/readyz").status == 200
        eventually(lambda: statuses[503, "2"])
    for thread in threads:
        thread.join(120)
    assert set(statuses) <= {(200, None), (503, "2")}
    assert statuses[200, None] >= 1
    assert statuses[503, "2"] >= 40
    assert server.member_asks(member).status == 200


def test_answers_in_flight_are_delivered_before_the_end(own: Server) -> None:
    members = [own.factory.member() for _ in range(MEMBERS.threads)]
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda m=m: statuses.append(own.member_asks(m).status)) for m in members]
    with contextlib.ExitStack() as open_ones:
        half, idle = (
            open_ones.enter_context(socket.create_connection(("127.0.0.1", own.port), timeout=60)) for _ in range(2)
        )
        half.sendall(f"POST {PHOTO} HTTP/1.1\r\nHost: api\r\nContent-Le".encode())
        idle.sendall(HEALTH + b"\r\n")
        assert idle.recv(65536)
        with own.slow_database():
            for thread in threads:
                thread.start()
            eventually(lambda: own.factory.waiting() == MEMBERS.threads)  # all may be with one worker
            own.process.terminate()
            time.sleep(0.3)
        assert own.process.exit_code(STOP_SECONDS + 1) == 0
        assert "panicked" not in own.process.output()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * MEMBERS.threads
    assert not list(MEMORY.glob(f"{PREFIX}{own.process.pid}-*"))


def test_a_reload_replaces_every_worker_and_loses_no_request(own: Server) -> None:
    outcomes: Counter[Any] = Counter()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                outcomes[own.ask("/readyz").status] += 1
            except OSError as error:
                outcomes[type(error)] += 1

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    old = set(own.process.workers())
    os.kill(own.process.pid, signal.SIGHUP)
    eventually(lambda: len(own.process.workers()) == 2 and not old & set(own.process.workers()))
    before = outcomes[200]
    eventually(lambda: outcomes[200] > before + 20)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert set(outcomes) == {200}


def test_workers_that_die_or_hang_are_replaced_however_often(own: Server) -> None:
    for _ in range(2):
        for worker in own.process.workers():
            os.kill(worker, signal.SIGKILL)
        eventually(
            lambda: len(own.process.workers()) == 2 and own.process.answers(f"http://127.0.0.1:{own.port}/healthz")
        )
    [folder] = MEMORY.glob(f"{PREFIX}{own.process.pid}-*")
    hung, other = own.process.workers()
    eventually((folder / str(hung)).exists)
    os.kill(hung, signal.SIGSTOP)
    past = time.monotonic() - HUNG_SECONDS - 1
    os.utime(folder / str(hung), (past, past))
    eventually(lambda: hung not in own.process.workers() and len(own.process.workers()) == 2)
    assert other in own.process.workers()
    assert "worker hangs" in own.process.output()


def test_no_worker_outlives_the_process_that_started_it(own: Server) -> None:
    workers = own.process.workers()
    own.process.kill()
    eventually(lambda: not [worker for worker in workers if Path(f"/proc/{worker}").exists()])


def test_a_port_that_is_taken_is_named(server: Server, start: Callable[..., Server], tmp_path: Path) -> None:
    settings = environ("postgresql://nobody@/none", API_PORT=str(server.port))
    with Processes(tmp_path, settings) as run:
        second = run("web")
        assert second.exit_code(60) == 1
        assert f"cannot listen on 127.0.0.1, port {server.port}" in second.output()
