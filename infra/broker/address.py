"""Redis' address as people have it, read once for all who connect: broker, coordination store, cache, doctor, health.

One server, over TCP, TLS or a Unix socket, or the primary that sentinels name. TLS is verified unless the address says
otherwise. An error names the parameter that is wrong, and never shows the address itself: it holds a password.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import redis
from redis.sentinel import Sentinel

from infra.errors import ServerError

FORMS: Final = (
    "redis://user:password@host:6379/0, rediss://… for TLS, unix:///path?db=0, or "
    "sentinel://user:password@host:26379,host:26379/service/0"
)
ENCODE: Final = (
    "a password's special characters are written percent-encoded (/ as %2F, # as %23, ? as %3F, @ as %40, : as %3A)"
)
_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_SCHEMES: Final = {
    **dict.fromkeys(("redis", "valkey"), ("tcp", False)),
    **dict.fromkeys(("rediss", "valkeys"), ("tcp", True)),
    **dict.fromkeys(("unix", "redis+socket", "redis+unix", "socket"), ("unix", False)),
    **dict.fromkeys(("sentinel", "redis+sentinel"), ("sentinel", False)),
    **dict.fromkeys(("sentinels", "rediss+sentinel"), ("sentinel", True)),
}
"""Kind of address, and whether by TLS; names of other clients among them."""
_CERTIFICATES: Final = ("none", "optional", "required")


def _flag(value: str) -> bool:
    known = {**dict.fromkeys(("true", "yes", "1"), True), **dict.fromkeys(("false", "no", "0"), False)}
    return known[value.lower()]


def _certificates(value: str) -> str:
    plain = value.lower().removeprefix("cert_")
    if plain not in _CERTIFICATES:
        raise ValueError
    return plain


_TLS_PARAMETERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "ssl_cert_reqs": _certificates,
    "ssl_check_hostname": _flag,
    **dict.fromkeys(("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_keyfile_password"), str),
}
_CLIENT_PARAMETERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "socket_timeout": float,
    "socket_connect_timeout": float,
    "socket_keepalive": _flag,
    "health_check_interval": int,
    "client_name": str,
}
"""What redis-py reads from a URL and a client of ours may be given. The broker's are settings of ours alone."""
_OWN_PARAMETERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "db": int,
    "virtual_host": int,
    "username": str,
    "password": str,
    "service": str,
    "master_name": str,
    "sentinel_username": str,
    "sentinel_password": str,
}
_PARAMETERS: Final = {**_OWN_PARAMETERS, **_TLS_PARAMETERS, **_CLIENT_PARAMETERS}


@dataclass(frozen=True)
class RedisAddress:
    """A parsed address. `hosts` are a server, or sentinels where there is a `service`; `path` is a Unix socket's."""

    hosts: tuple[tuple[str, int | None], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)
    sentinel_account: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """Where it is, for people; no secret in it."""
        hosts = ",".join(_spelled(host, port or _REDIS_PORT) for host, port in self.hosts)
        return self.path or (f"{self.service}, by the sentinels {hosts}" if self.service else hosts)

    def client(self, **options: Any) -> redis.Redis:  # noqa: ANN401 - redis-py's own options
        """A client; the server need not be there yet. What the address says goes before `options`."""
        arguments = {"db": self.db, "username": self.username, "password": self.password, **options, **self.options}
        secure = {"ssl": True, **self.tls} if self.tls is not None else {}
        if self.path:
            return redis.Redis(unix_socket_path=self.path, **arguments)
        if self.service:
            timing = {name: value for name, value in arguments.items() if name.startswith("socket_")}
            asking = {**timing, **self.sentinel_account, **secure}
            sentinels = Sentinel(list(self.hosts), sentinel_kwargs=asking, **arguments, **secure)  # type: ignore[no-untyped-call]
            client: redis.Redis = sentinels.master_for(self.service, redis.Redis)  # type: ignore[no-untyped-call]
            return client
        ((host, port),) = self.hosts
        return redis.Redis(host=host, port=port or _REDIS_PORT, **arguments, **secure)

    def broker_url(self) -> str:
        """The address as kombu spells it."""
        account = _account(self.username, self.password)
        if self.path:
            return f"redis+socket://{account}{quote(self.path)}?{urlencode({'virtual_host': self.db})}"
        flags = {True: "true", False: "false"}
        tls = {name: flags.get(value, value) for name, value in (self.tls or {}).items()}
        query = f"?{urlencode(tls)}" if tls else ""
        scheme = "sentinel" if self.service else "redis" if self.tls is None else "rediss"
        hosts = [_spelled(host, port) for host, port in self.hosts]
        return ";".join(f"{scheme}://{account}{host}/{self.db}{query}" for host in hosts)

    def broker_options(self) -> dict[str, Any]:
        """What kombu's transport needs in addition to the URL."""
        if not self.service:
            return {}
        secure = {"ssl": True, **self.tls} if self.tls is not None else {}
        asking = {"socket_timeout": 5, "socket_connect_timeout": 5, **self.sentinel_account, **secure}
        return {"master_name": self.service, "sentinel_kwargs": asking}


def parse_redis(redis_url: str) -> RedisAddress:
    """Read an address.

    Raises:
        ServerError: it is none; the message says what to change, and shows nothing of it but the parameter's name.
    """
    parts = urlsplit(redis_url.strip())
    if parts.scheme not in _SCHEMES:
        raise ServerError(f"LIBRA_REDIS_URL is not a Redis URL ({FORMS})")
    kind, is_tls = _SCHEMES[parts.scheme]
    if parts.fragment or "@" in parts.query:
        raise ServerError(f"LIBRA_REDIS_URL cannot be read: {ENCODE}")
    given = _parameters(parts.query)
    account, _, hosts = parts.netloc.rpartition("@")
    username, _, password = account.partition(":")
    common: dict[str, Any] = {
        "username": unquote(username) or given.get("username"),
        "password": unquote(password) or given.get("password"),
        "tls": _tls(given, is_tls=is_tls),
        "options": {name: given[name] for name in _CLIENT_PARAMETERS if name in given},
    }
    named_db = given.get("db", given.get("virtual_host"))
    path = unquote(parts.path)
    if kind == "unix":
        if not path.strip("/") or hosts:
            raise ServerError(
                "LIBRA_REDIS_URL names no socket: three slashes begin a path, as in unix:///run/redis.sock"
            )
        return RedisAddress(path=path, db=named_db or 0, **common)
    if kind == "sentinel":
        return _sentinels(hosts, path, given, named_db, common)
    db = named_db if named_db is not None else _database(path.strip("/"))
    if "," in hosts:
        raise ServerError(
            "LIBRA_REDIS_URL names several servers; only sentinels may be several (sentinel://a,b/service/0)"
        )
    return RedisAddress(hosts=_hosts(hosts, None), db=db, **common)


def _sentinels(
    hosts: str, path: str, given: Mapping[str, Any], named_db: int | None, common: dict[str, Any]
) -> RedisAddress:
    service, _, number = path.strip("/").partition("/")
    if service.isdigit() and not number:
        service, number = "", service
    service = given.get("service") or given.get("master_name") or service
    if not service:
        raise ServerError("LIBRA_REDIS_URL names no service: sentinel://host:26379/mymaster/0")
    names = {"sentinel_username": "username", "sentinel_password": "password"}
    return RedisAddress(
        hosts=_hosts(hosts, _SENTINEL_PORT),
        service=service,
        db=named_db if named_db is not None else _database(number),
        sentinel_account={name: given[given_name] for given_name, name in names.items() if given_name in given},
        **common,
    )


def _parameters(query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if not name.isidentifier():  # rather a piece of a password than a name to show
            raise ServerError(f"LIBRA_REDIS_URL cannot be read: {ENCODE}")
        if name not in _PARAMETERS:
            known = ", ".join(sorted(_PARAMETERS))
            raise ServerError(f"LIBRA_REDIS_URL has a parameter {name!r} that is not known here; these are: {known}")
        try:
            found[name] = _PARAMETERS[name](value)
        except (ValueError, KeyError) as error:
            raise ServerError(f"LIBRA_REDIS_URL: the parameter {name!r} has a value that it cannot have") from error
    return found


def _tls(given: Mapping[str, Any], *, is_tls: bool) -> dict[str, Any] | None:
    """How to check the server's certificate, which is checked unless the URL says otherwise; None without TLS."""
    arguments = {name: given[name] for name in _TLS_PARAMETERS if name in given}
    if not is_tls:
        if arguments:
            raise ServerError(
                f"LIBRA_REDIS_URL: the parameter {next(iter(arguments))!r} goes with TLS, as in rediss://"
            )
        return None
    return {"ssl_cert_reqs": "required", **arguments}


def _hosts(listed: str, port: int | None) -> tuple[tuple[str, int | None], ...]:
    found = []
    for one in listed.split(","):
        try:
            each = urlsplit(f"//{one}")
            found.append((each.hostname or "localhost", each.port or port))
        except ValueError as error:
            raise ServerError(f"LIBRA_REDIS_URL: the port is not a number; {ENCODE}") from error
    return tuple(found)


def _database(number: str) -> int:
    if not number:
        return 0
    if not number.isdigit():
        raise ServerError(f"LIBRA_REDIS_URL: the database is a number, as in redis://host:6379/0; {ENCODE}")
    return int(number)


def _spelled(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"


def _account(username: str | None, password: str | None) -> str:
    if not username and not password:
        return ""
    user, word = (quote(part or "", safe="") for part in (username, password))
    return f"{user}:{word}@" if word else f"{user}@"
