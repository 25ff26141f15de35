"""URLs that name several servers: a primary and its standbys, or the sentinels that know which is which."""

import re
from typing import NamedTuple, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

SENTINEL_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
SENTINEL_PORT = 26379

_POSTGRESQL = re.compile(r"postgres(?:ql)?(?:\+psycopg2)?://")
_HOSTS = re.compile(r"(?P<user>[^/?]*@)?(?P<hosts>[^/?@]*,[^/?@]*)(?P<database>[^?]*)\??(?P<query>.*)")
_HOST = re.compile(r"\[?([^\[\]]*?)\]?(?::(\d*))?")


class SentinelUrl(NamedTuple):
    """The parts of `redis+sentinel://:password@s1:26379,s2:26379,s3:26379/mymaster/0`.

    service: what the sentinels call the servers. username, password: the sentinels' own. server: a URL with everything
    that holds for any of the servers; its host stands for the one that is primary.
    """

    sentinels: list[tuple[str, int]]
    service: str
    username: str | None
    password: str | None
    server: str

    @classmethod
    def parse(cls, value: str) -> Self | None:
        """Return the parts of such a URL; None for any other. Raises ValueError when a port is not a number."""
        scheme, _, rest = value.partition("://")
        if scheme not in SENTINEL_SCHEMES:
            return None
        # By hand: some versions of urlsplit refuse an IPv6 address among several hosts.
        rest, _, query = rest.partition("?")
        network, _, path = rest.partition("/")
        user, at, hosts = network.rpartition("@")
        addresses = [urlsplit(f"//{host}") for host in hosts.split(",")]
        service, _, database = path.strip("/").partition("/")
        given = dict(parse_qsl(query, keep_blank_values=True))
        username, password = (given.pop(f"sentinel_{name}", None) for name in ("username", "password"))
        others = f"?{urlencode(given)}" if given else ""
        return cls(
            [(each.hostname or "", SENTINEL_PORT if each.port is None else each.port) for each in addresses],
            unquote(service),
            username,
            password,
            f"{SENTINEL_SCHEMES[scheme]}://{user}{at}primary/{database}{others}",
        )


def for_psycopg2(value: str) -> str:
    """Return a PostgreSQL URL for SQLAlchemy, which wants several hosts in the query, where libpq takes `a:1,b:2`."""
    if not (scheme := _POSTGRESQL.match(value)):
        return value
    rest = value[scheme.end() :]
    if found := _HOSTS.fullmatch(rest):
        each = [_HOST.fullmatch(host) for host in found["hosts"].split(",")]
        if all(each):
            hosts, ports = (",".join(part) for part in zip(*((h[1], h[2] or "5432") for h in each if h), strict=True))
            several = f"host={quote(hosts, safe=',:')}&port={ports}"
            query = "&".join(filter(None, [found["query"], several]))
            rest = f"{found['user'] or ''}{found['database'] or '/'}?{query}"
    return f"postgresql+psycopg2://{rest}"  # SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3
