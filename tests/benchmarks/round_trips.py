"""Round trips of a lone live item over HTTP: requests to Redis and to Postgres, counted on the wire.

Every process of the fleet (gateway, worker with its two consumers, collector) reaches the servers through a proxy here.
A round trip is what a client sends on one connection until the server answers: a pipeline and a MULTI are one. A BRPOP
counts when it brings a message. Items come one at a time, half a second apart.

What the clock brings is not an item's: an interval without items is measured first, and of each kind of request what
came in it is taken off, by the second. What is left and comes less often than nine times in ten items is not an item's
either: the counters that a collector adds up once a second, the gateway's background looks, a renewed lease. Every
kind is printed with its rate all the same, so that the sum can be argued with.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

from infra.ledger.keys import create_key
from infra.process import wait_until
from infra.servers.services import Services
from schemas.access import Role
from tests.benchmarks.kit.figures import Figure
from tests.benchmarks.kit.rig import GUARD, rig, text_of
from tests.support.gateway import answers, free_port
from tests.support.processes import stop

_ITEMS: Final = 60
_QUICK_ITEMS: Final = 20
_EVERY_S: Final = 0.5
_IDLE_S: Final = 20.0
_OF_EACH: Final = 0.9
"""A kind of request that is rarer than this, per item, is not an item's own."""
_REDIS_AT_MOST: Final = 8
_POSTGRES_AT_MOST: Final = 9


def run(*, quick: bool) -> Iterator[Figure]:
    """Redis round trips and Postgres messages of one item, without the fleet's background."""
    items = _QUICK_ITEMS if quick else _ITEMS
    with rig() as found, _proxied(found.services, found.folder) as (services, counts):
        _, key = create_key(found.services.engine, tenant="benchmark", role=Role.SERVICE)
        port = free_port()
        with _fleet(services, found.folder, port):
            for number in range(10):  # connections, prepared statements and the day's run are there afterwards
                _judge(port, key, number)
            idle, idle_s = _counted(counts, lambda: time.sleep(max(_IDLE_S, items * _EVERY_S)))

            def judge_all() -> None:
                for number in range(items):
                    started = time.monotonic()
                    _judge(port, key, 100 + number)
                    time.sleep(max(0.0, _EVERY_S - (time.monotonic() - started)))

            busy, busy_s = _counted(counts, judge_all)
        for server, bar in (("redis", _REDIS_AT_MOST), ("postgres", _POSTGRES_AT_MOST)):
            poll = busy_s / idle_s  # a poller asks by the clock, however long the items take
            each = {kind: (busy[server][kind] - poll * idle[server][kind]) / items for kind in busy[server]}
            own = {kind: round(count) for kind, count in each.items() if count >= _OF_EACH}
            print(f"{server}, per item:", *(f"  {each[kind]:5.2f}  {kind}" for kind in sorted(each)), sep="\n")
            note = "; ".join(f"{count} {kind}" for kind, count in sorted(own.items()))
            yield Figure("round_trips", f"{server}, a live item", sum(own.values()), "", at_most=bar, note=note)


Counts = dict[str, Counter[str]]


def _counted(counts: Counts, action: Callable[[], None]) -> tuple[Counts, float]:
    """Requests while something is done, by server and kind, and the seconds that it took."""
    before, started = {server: Counter(kinds) for server, kinds in counts.items()}, time.monotonic()
    action()
    took_s = time.monotonic() - started
    return {server: Counter(kinds) - before[server] for server, kinds in counts.items()}, took_s


def _judge(port: int, key: str, number: int) -> None:
    body = json.dumps({"input": text_of(number, 300)}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/moderations", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own gateway
        answer.read()


@contextmanager
def _fleet(services: Services, folder: Path, port: int) -> Iterator[None]:
    """A worker of the fake guard, a collector and a gateway, all ready."""
    commands = {
        "worker": ["worker", "--guard", GUARD, "--devices", "cpu"],
        "collector": ["collector"],
        "gateway": ["gateway", "--port", str(port), "--guard", GUARD, "--no-local"],
    }
    processes = []
    for name, command in commands.items():
        with (folder / f"{name}.log").open("wb") as output:
            arguments = [sys.executable, "-m", "libra_fleet.cli", *command]
            processes.append(
                subprocess.Popen(arguments, env=services.environment(), stdout=output, stderr=subprocess.STDOUT)
            )
    try:
        ready = wait_until(lambda: answers(port) and _is_ready(port), timeout_s=240)
        if not ready:
            logs = "\n".join((folder / f"{name}.log").read_text(errors="replace")[-1_000:] for name in commands)
            raise TimeoutError(f"the fleet did not start:\n{logs}")
        yield
    finally:
        for process in processes:
            stop(process, grace_s=10)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def _proxied(services: Services, folder: Path) -> Iterator[tuple[Services, Counts]]:
    """The same servers behind proxies that count."""
    counts: Counts = defaultdict(Counter)
    redis = urlsplit(services.redis_url)
    database = urlsplit(services.database_url)
    where = {name: values[-1] for name, values in parse_qs(database.query).items()}
    postgres_socket = f".s.PGSQL.{where['port']}"
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    for server, here, there, kinds in (
        ("redis", folder / "redis.sock", redis.path, _RedisKinds),
        ("postgres", folder / postgres_socket, f"{where['host']}/{postgres_socket}", _PostgresKinds),
    ):
        opening = asyncio.start_unix_server(_relay(str(there), kinds, counts[server]), str(here))
        asyncio.run_coroutine_threadsafe(opening, loop).result()
    query = urlencode({**where, "host": str(folder)})
    try:
        yield (
            Services(
                services.settings,
                f"unix://{folder / 'redis.sock'}?{redis.query}",
                database._replace(query=query).geturl(),
                embedded=False,
            ),
            counts,
        )
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class _RedisKinds:
    """Names requests by their commands; a BRPOP has no name until it brings something."""

    def request(self, data: bytes) -> str:
        words = data.split(b"\r\n")
        commands = [
            words[at + 2].decode(errors="replace").upper()
            for at, word in enumerate(words[:-2])
            if word[:1] == b"*" and words[at + 1][:1] == b"$"
        ]
        return " ".join(commands) or "?"

    def is_empty(self, kind: str, reply: bytes) -> bool:
        return kind == "BRPOP" and (reply.startswith((b"*-1", b"_", b"$-1")))


class _PostgresKinds:
    """Names requests by their SQL, that of a prepared statement included."""

    def __init__(self) -> None:
        self._prepared: dict[bytes, str] = {}

    def request(self, data: bytes) -> str:
        names, prepared = [], ""
        while len(data) >= 5 and data[:1].isalpha():
            kind, size = data[:1], int.from_bytes(data[1:5])
            body, data = data[5 : 1 + size], data[1 + size :]
            if kind == b"Q":
                names.append(_words(body))
            elif kind == b"P":
                name, sql, *_ = body.split(b"\0")
                self._prepared[name] = prepared = _words(sql)
            elif kind == b"B":
                names.append(self._prepared.get(body.split(b"\0")[1], "?"))
        return " + ".join(names) or (f"prepare {prepared}" if prepared else "start")

    def is_empty(self, kind: str, reply: bytes) -> bool:  # noqa: ARG002
        return False


def _words(sql: bytes) -> str:
    return " ".join(sql.decode(errors="replace").rstrip("\0").split()[:4])


def _relay(
    there: str, kinds: type[_RedisKinds] | type[_PostgresKinds], counts: Counter[str]
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
    """A connection's two directions; what comes from the client after the server has answered is the next request."""

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_unix_connection(there)
        naming = kinds()
        asked: list[bytes] = []

        def note_reply(data: bytes) -> None:
            if asked:
                kind = naming.request(b"".join(asked))
                asked.clear()
                counts[kind] += not naming.is_empty(kind, data)

        up = _pump(client, to_server, asked.append)
        down = _pump(server, to_client, note_reply)
        with suppress(OSError, asyncio.CancelledError):  # cancelled in the end; the stream's callback wants no error
            await asyncio.gather(up, down)

    return serve


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, note: Callable[[bytes], None]) -> None:
    try:
        while data := await source.read(1 << 20):
            note(data)
            sink.write(data)
    finally:
        sink.close()
