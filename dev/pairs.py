"""A PostgreSQL with a standby, and a Valkey with a replica and three sentinels, to be broken in tests.

Who promotes the standby is whoever uses this: an operator does, or a tool such as Patroni. The sentinels promote the
replica by themselves.
"""

import contextlib
import secrets
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode

import psycopg2
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from dev.embedded import Home, free_port, initdb, running, send, wait_until

SERVICE = "after-hours"  # what the sentinels call the servers
DOWN_MILLISECONDS = 2000  # of silence, after which the sentinels give a server up


class Server:
    """One server's process: killed, paused, started again."""

    def __init__(self, place: Home, command: Sequence[Any], stop: signal.Signals) -> None:
        self._place, self._command, self._stop = place, command, stop
        self._running = ExitStack()
        self._process: subprocess.Popen[bytes]

    @property
    def is_running(self) -> bool:
        """Whether it runs, or is paused."""
        return self._process.poll() is None

    def start(self) -> None:
        """Start it; it may take a moment until it answers."""
        self._process = self._running.enter_context(running(self._place, self._command, self._stop))

    def kill(self) -> None:
        """End it, and what it has started, as a lost machine would."""
        send(self._process.pid, signal.SIGKILL)
        self.stop()

    def pause(self) -> None:
        """Let it stand still: its connections stay open, and new ones are accepted, but nothing is answered."""
        send(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        send(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Stop it in order, unless it has ended."""
        self._running.close()

    def wait_until(self, is_ready: Callable[[], object]) -> None:
        """Wait until it is ready. Raises SystemExit."""
        wait_until(self._process, is_ready, self._place)


class PostgresPair:
    """Two servers of one database, `app`. A commit on the primary waits for the standby."""

    def __init__(self, place: Home) -> None:
        """Make both, and start them."""
        self._place = place
        self._binaries = place.binaries()[0]
        self._ports = 5432, 5433  # of the sockets in the place's folder
        self.primary = 0
        parts = {"host": f"{place.path},{place.path}", "port": ",".join(map(str, self._ports))}
        self.url = f"postgresql://postgres@/app?{urlencode(parts, safe='/,')}"
        self._folders = [place.path / name for name in ("pg-a", "pg-b")]
        self.servers = [self._server(number) for number in (0, 1)]
        kept = ("-c", "wal_log_hints=on", "-c", "wal_keep_size=512MB")  # for pg_rewind
        initdb(place, self._folders[0], *kept, "-c", "listen_addresses=")
        self._start(0)
        self._tool("createdb", 0, "app")
        self.follow(1)

    def url_of(self, number: int) -> str:
        """Return the URL of one of the servers, whatever it is at the moment."""
        return self.url.partition("?")[0] + f"?host={self._place.path}&port={self._ports[number]}"

    def promote(self) -> None:
        """Make the standby the primary; it waits for no standby, as it has none."""
        self.primary = 1 - self.primary
        self._place.run(self._binaries / "pg_ctl", "-D", self._folders[self.primary], "promote", "-w")

    def follow(self, number: int) -> None:
        """Make a server that is not running the standby of the other, which then waits for it with each commit."""
        primary, folder = 1 - number, self._folders[number]
        source = f"host={self._place.path} port={self._ports[primary]} user=postgres application_name=standby"
        if not folder.exists():
            self._place.run(self._binaries / "pg_basebackup", "-D", folder, "-d", source, "-c", "fast")
        elif not (folder / "standby.signal").exists():  # it was the primary
            self._sql(primary, "CHECKPOINT")  # or pg_rewind may not see the promotion
            rewind = (self._binaries / "pg_rewind", "-D", folder, "--source-server", f"{source} dbname=postgres")
            self._place.run(*rewind)
        # pg_rewind takes the primary's settings, too.
        (folder / "postgresql.auto.conf").write_text(f"primary_conninfo = '{source}'\n")
        (folder / "standby.signal").touch()
        self._start(number)
        self.servers[number].wait_until(lambda: self.follows(number))
        self._sql(primary, "ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        self._sql(primary, "SELECT pg_reload_conf()")

    def stop(self) -> None:
        """Stop both, the standby last: the primary waits for it."""
        for number in (self.primary, 1 - self.primary):
            self.servers[number].stop()

    def follows(self, number: int) -> bool:
        """Return whether a server is the standby of the other, and connected to it."""
        if self.primary == number or not self.servers[number].is_running:
            return False
        return bool(self._sql(self.primary, "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"))

    def wait_for_no_standby(self) -> None:
        """Let commits no longer wait for a standby that is gone, as Patroni would."""
        self._sql(self.primary, "ALTER SYSTEM RESET synchronous_standby_names")
        self._sql(self.primary, "SELECT pg_reload_conf()")

    def _server(self, number: int) -> Server:
        port = f"port={self._ports[number]}"
        command = [self._binaries / "postgres", "-D", self._folders[number], "-k", self._place.path, "-c", port]
        return Server(self._place, command, signal.SIGINT)

    def _start(self, number: int) -> None:
        server = self.servers[number]
        server.start()
        server.wait_until(lambda: not self._tool("pg_isready", number, "-q"))

    def _tool(self, name: str, number: int, *arguments: str) -> int:
        command = (self._binaries / name, "-h", self._place.path, "-p", str(self._ports[number]), "-U", "postgres")
        return subprocess.call([*command, *arguments], stdin=subprocess.DEVNULL, **self._place.options())

    def _sql(self, number: int, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(psycopg2.connect(self.url_of(number))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []


class ValkeyPair:
    """Two servers on the loopback, one of them a replica, and three sentinels, which are not to be broken all at once.

    The sentinels' own password is not the servers'.
    """

    def __init__(self, place: Home) -> None:
        """Start all five, and wait until the sentinels know each other and the replica."""
        self._place, self._password = place, secrets.token_urlsafe() + "@/"
        self._binary = place.binaries()[1]
        self._ports = [free_port() for _ in range(5)]
        self.servers = [self._server(number) for number in (0, 1)]
        self.sentinels = [self._sentinel(number) for number in (2, 3, 4)]
        for server in self.servers:
            server.start()
        self._follow(1, 0)
        for sentinel in self.sentinels:
            sentinel.start()
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports[2:])
        self.url = f"redis+sentinel://:{quote(self._password, safe='')}@{hosts}/{SERVICE}/0"
        self.url += f"?sentinel_password={quote(self._password[::-1], safe='')}"
        for number, sentinel in enumerate(self.sentinels, 2):
            sentinel.wait_until(partial(self._knows_all, number))

    @property
    def primary(self) -> int:
        """Which of the servers the sentinels call primary."""
        for number in (2, 3, 4):
            with contextlib.suppress(RedisError), self._client(number) as client:
                return self._ports.index(client.sentinel_get_master_addr_by_name(SERVICE)[1])
        raise LookupError("no sentinel answers")

    def client(self) -> Redis:
        """Return a client of the server that the sentinels call primary, which does not retry."""
        options: dict[str, Any] = {"socket_timeout": 2, "retry": Retry(NoBackoff(), 0)}
        account = {**options, "password": self._password[::-1]}
        addresses = [("127.0.0.1", port) for port in self._ports[2:]]
        sentinel: Any = Sentinel(addresses, sentinel_kwargs=account, **options)  # type: ignore[no-untyped-call]
        return cast("Redis", sentinel.master_for(SERVICE, password=self._password))

    def make_whole(self) -> None:
        """Start what was killed, and wait until the primary has its replica."""
        for sentinel in self.sentinels:
            if not sentinel.is_running:
                sentinel.start()
        for number, server in enumerate(self.servers):
            if not server.is_running:
                server.start()
                self._follow(number, self.primary)
        self.servers[self.primary].wait_until(self.is_whole)

    def failed_over_from(self, number: int) -> bool:
        """Return whether the other server is primary, for the sentinels and by its own account."""
        if self.primary == number:
            return False
        with contextlib.suppress(RedisError), self._client(1 - number) as client:
            return bool(client.info("replication")["role"] == "master")
        return False

    def is_whole(self) -> bool:
        """Return whether the primary has a replica that is connected to it."""
        with contextlib.suppress(RedisError, LookupError), self._client(self.primary) as client:
            return bool(client.info("replication")["connected_slaves"] == 1)
        return False

    def stop(self) -> None:
        """Stop all five."""
        for server in (*self.sentinels, *self.servers):
            server.stop()

    def _server(self, number: int) -> Server:
        folder, port = self._folder(number), str(self._ports[number])
        options = ["--bind", "127.0.0.1", "--port", port, "--dir", folder, "--save", ""]
        account = ["--requirepass", self._password, "--masterauth", self._password]
        # A primary that lost its replica goes on, but what it is told in that time may be lost: docs/zones.md.
        return Server(self._place, [self._binary, *options, *account, "--appendonly", "yes"], signal.SIGTERM)

    def _sentinel(self, number: int) -> Server:
        config = self._folder(number) / "sentinel.conf"
        config.write_text(
            "\n".join(
                [
                    f"port {self._ports[number]}",
                    "bind 127.0.0.1",
                    f"requirepass {self._password[::-1]}",
                    f"sentinel sentinel-pass {self._password[::-1]}",
                    f"sentinel monitor {SERVICE} 127.0.0.1 {self._ports[0]} 2",
                    f"sentinel auth-pass {SERVICE} {self._password}",
                    f"sentinel down-after-milliseconds {SERVICE} {DOWN_MILLISECONDS}",
                    f"sentinel failover-timeout {SERVICE} {3 * DOWN_MILLISECONDS}",
                    "",
                ]
            )
        )
        self._place.give(config)
        return Server(self._place, [self._binary, config, "--sentinel"], signal.SIGTERM)

    def _folder(self, number: int) -> Path:
        folder = self._place.path / f"valkey-{number}"
        folder.mkdir()
        self._place.give(folder)
        return folder

    def _follow(self, number: int, primary: int) -> None:
        def is_connected() -> bool:
            with contextlib.suppress(RedisError), self._client(number) as client:
                client.replicaof("127.0.0.1", self._ports[primary])
                return bool(client.info("replication")["master_link_status"] == "up")
            return False

        self.servers[number].wait_until(is_connected)

    def _knows_all(self, number: int) -> bool:
        with self._client(number) as client:
            return knows_all(client)

    def _client(self, number: int) -> Any:
        password = self._password if number < 2 else self._password[::-1]
        return Redis(port=self._ports[number], password=password, socket_timeout=2, retry=Retry(NoBackoff(), 0))


def knows_all(sentinel: Any) -> bool:
    """Return whether a sentinel, by its client, knows the replica and the two others."""
    with contextlib.suppress(RedisError):
        found = sentinel.sentinel_masters()[SERVICE]
        return bool(found["num-slaves"] == 1 and found["num-other-sentinels"] == 2)
    return False
