"""What compose.zones.yaml adds: the scripts of its servers, run without containers."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import RedisError

from afterhours_service.stores.redis import connect
from dev.embedded import Home, free_port, home
from dev.pairs import knows_all
from tests.conftest import ROOT, make_settings
from tests.deploy.test_deploy import OURS, THEIRS
from tests.stopwatch import eventually

DEPLOY = ROOT / "deploy"
REPLICATION = "replication-replication"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pairs")]


class Container:
    """A script of deploy/valkey, run in a folder that stands for a container's."""

    def __init__(self, place: Home, folder: Path, script: str, *arguments: str, **names: str) -> None:
        """Start it. names: what stands in the scripts, and what is to stand there."""
        shutil.copytree(DEPLOY / "valkey", folder)
        for file in folder.iterdir():
            text = file.read_text().replace("/tmp/", f"{folder}/tmp/").replace("/data/", f"{folder}/tmp/")
            for name, value in names.items():
                text = text.replace(name.replace("_", " "), value)
            file.write_text(text)
        stubs, data = folder / "bin", folder / "tmp"
        stubs.mkdir()
        data.mkdir()
        where = f"--dir {data}" if script == "start.sh" else ""
        entry = f'shift; exec {place.binaries()[1]} "$@" {where}'
        for name, body in (("docker-entrypoint.sh", entry), ("chown", "true"), ("hostname", "echo 127.0.0.1")):
            (stubs / name).write_text(f"#!/bin/sh\n{body}\n")
            (stubs / name).chmod(0o755)
        environment = {"PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}", "REPLICATION_PASSWORD": REPLICATION}
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            ["sh", str(folder / script), *arguments],
            env={**environment, "SERVICE_PASSWORD": OURS, "CHAT_PASSWORD": THEIRS},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._log.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Home]:
    with home(Path(os.environ["TEST_FOLDER"]) / f"containers-{os.getpid()}") as place:
        yield place


def test_the_users_of_the_scripts_are_enough_to_replicate_to_fail_over_and_to_serve(
    place: Home, tmp_path: Path, database_url: str
) -> None:
    first, second, *sentinels = (str(free_port()) for _ in range(5))
    with contextlib.ExitStack() as running:

        def start(name: str, script: str, *arguments: str, **names: str) -> Container:
            container = Container(place, tmp_path / name, script, *arguments, **names)
            running.callback(container.stop)
            return container

        primary = start("first", "start.sh", "--port", first, "--bind", "127.0.0.1")
        start("second", "start.sh", "--port", second, "--bind", "127.0.0.1", "--replicaof", "127.0.0.1", first)

        def replicates() -> bool:
            with contextlib.suppress(RedisError), login(second) as client:
                found: Any = client.info("replication")
                return bool(found["master_link_status"] == "up")
            return False

        eventually(replicates)
        for number, port in enumerate(sentinels):
            start(f"sentinel-{number}", "sentinel.sh", port_26379=f"port {port}", valkey_6379=f"127.0.0.1 {first}")
        hosts = ",".join(f"127.0.0.1:{port}" for port in sentinels)
        url = f"redis+sentinel://after_hours:{OURS}@{hosts}/after-hours/0?sentinel_password={REPLICATION}"
        client = connect(make_settings(database_url, url), 5)

        def writes() -> bool:
            with contextlib.suppress(RedisError):
                return bool(client.set("after-hours:test", port_of(client)))
            client.connection_pool.disconnect()
            return False

        eventually(writes)
        assert client.get("after-hours:test") == first.encode()
        for port in sentinels:
            with Redis(port=int(port), password=REPLICATION) as sentinel:
                eventually(partial(knows_all, sentinel))
        primary.stop()
        eventually(lambda: writes() and client.get("after-hours:test") == second.encode())
        client.close()


def login(port: str) -> Redis:
    return Redis(port=int(port), username="after_hours", password=OURS)


def port_of(client: Redis) -> str:
    connection = client.connection_pool.get_connection()
    client.connection_pool.release(connection)
    return str(connection.port)


def test_the_compose_files_fit_each_other() -> None:
    one, zones = (yaml.safe_load((DEPLOY / name).read_text()) for name in ("compose.yaml", "compose.zones.yaml"))
    assert {"postgres", "valkey"} == set(one["services"]) & set(zones["services"])
    for service in zones["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in zones["volumes"] or (DEPLOY / source).exists()
    text = (DEPLOY / "zones.env").read_text()
    for name in ("DATABASE_URL", "OWNER_DATABASE_URL", "REDIS_URL"):
        assert f"\n{name}=" in text
        assert f"${{{name}:-" in (DEPLOY / "compose.yaml").read_text()
