"""What PostgreSQL allows: pgbench, with the statements and the round trips of a route, and no service around them."""

import hashlib
import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path

import jwt

from benchmarks.load.routes import CONNECTIONS, LATITUDE, LONGITUDE, Members, Route
from benchmarks.load.stack import SECRET, Stack

_STATEMENT = re.compile(r"LOG:  statement: (.*(?:\n\t.*)*)")
_MASKED = re.compile(r"\d+, \d+, '[0-9a-f]{1,16}'")  # two coordinates, and the nonce
_MAKES_KEY = re.compile(r"PREPARE (\w+) AS SELECT set_config\('after_hours.key'")
_PREPARE = re.compile(r"DETAIL:  prepare: (.*(?:\n\t.*)*)")


def measure(stack: Stack, members: Members, route: Route) -> float:
    """Return how many transactions a second pgbench makes of what a route says to PostgreSQL, one for each member."""
    members.prepare(stack, route)
    script = stack.place.state / f"{route.name}.sql"
    script.write_text(_script(*_record(stack, route, members.pool), members.pool))
    members.prepare(stack, route)
    postgres, _ = stack.place.binaries()
    each = members.pool // CONNECTIONS
    command = f"{postgres}/pgbench -n -M simple -c {CONNECTIONS} -j 1 -t {each} -D n=0 -f".split()
    output = subprocess.run(
        [*command, str(script), stack.database_url], check=True, capture_output=True, text=True
    ).stdout
    per_second = re.search(r"tps = ([\d.]+)", output)
    if per_second is None or "number of failed transactions: 0 " not in output:
        raise RuntimeError(output)
    return float(per_second[1])


def _record(stack: Stack, route: Route, member: int) -> tuple[list[str], list[str]]:
    """Return what a request of the member numbered `member` needs to have prepared, and its statements, in order."""
    log = Path(stack.place.log.name)
    stack.execute("ALTER SYSTEM SET log_statement = 'all'")
    stack.execute("SELECT pg_reload_conf()")
    time.sleep(0.5)
    begin = log.stat().st_size
    claims = {"userId": f"member-{member}", "exp": int(time.time()) + 60}
    headers = {"Authorization": f"Bearer {jwt.encode(claims, SECRET)}", "Content-Type": "application/json"}
    body = route.body.encode() if route.method == "POST" else None
    request = urllib.request.Request(stack.url + route.path, body, headers, method=route.method)  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own
        json.load(answer)
    time.sleep(0.2)
    text = log.read_bytes()[begin:].decode()
    stack.execute("ALTER SYSTEM RESET log_statement")
    stack.execute("SELECT pg_reload_conf()")
    # What a connection says once, or now and then: its plans, and how it gets the key that masks coordinates.
    once = re.compile("|".join(["ALTER SYSTEM", "PREPARE ", *_MAKES_KEY.findall(text)]))
    prepare = [plan for plan in _PREPARE.findall(text) if "gen_random_uuid" not in plan]
    said = _STATEMENT.findall(text.replace("DISCARD PLANS; ", ""))
    return prepare, [statement for statement in said if not once.search(statement)]


def _script(prepare: list[str], statements: list[str], member: int) -> str:
    """Return a script of pgbench in which each transaction of each client is another member's.

    prepare: what each client says first of all.
    """
    key = "SELECT set_config('after_hours.key', 'pgbench', false);"
    once = [r"\if :n = 1", key, *(f"{_in_a_line(statement)};" for statement in dict.fromkeys(prepare)), r"\endif"]
    ours = [_masked(statement).replace(f"'member-{member}'", "'member-:member'") for statement in statements]
    numbering = (r"\set n :n + 1", rf"\set member :n * {CONNECTIONS} - :client_id")
    return "\n".join([*numbering, *once, *(f"{statement.strip()};" for statement in ours), ""])


def _masked(statement: str) -> str:
    """Return a statement whose coordinates, if it has some, are masked by pgbench's key."""
    digest = hashlib.sha256(b"pgbenchnonce").digest()
    latitude, longitude = (
        round((degrees + 180) * 1e8) ^ int.from_bytes(mask)
        for degrees, mask in ((LATITUDE, digest[:6]), (LONGITUDE, digest[-6:]))
    )
    return _MASKED.sub(f"{latitude}, {longitude}, 'nonce'", statement)


def _in_a_line(statement: str) -> str:
    return " ".join(re.sub(r"--.*", "", statement).split())
