"""Single texts through the gateway at 200 requests/s, on an engine of 10 ms a batch and 2 ms an item.

The load comes from wrk (Debian's package of that name), a program of its own on the same machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from infra.ledger.keys import create_key
from infra.process import wait_until
from infra.servers.services import Services
from schemas.access import Role
from tests.benchmarks.kit.figures import Figure
from tests.benchmarks.kit.rig import GUARD, rig, text_of
from tests.support.gateway import answers, free_port
from tests.support.processes import stop

_PER_S: Final = 200
_SECONDS: Final = 60
_QUICK_SECONDS: Final = 15
_TEXT_BYTES: Final = 300
_CONNECTIONS: Final = 200
_MEAN_PAUSE_MS: Final = 930
"""With some 70 ms for the answer, each connection sends one request a second."""
_SCRIPT: Final = Path(__file__).with_name("gateway.lua")


def run(*, quick: bool) -> Iterator[Figure]:
    """Latency as the caller sees it, and whether every request has its verdict."""
    if shutil.which("wrk") is None:
        raise RuntimeError("this benchmark needs wrk (apt-get install wrk)")
    seconds = _QUICK_SECONDS if quick else _SECONDS
    with rig() as found, found.fleet("--fake-batch-ms", "10", "--fake-item-ms", "2"):
        _, key = create_key(found.services.engine, tenant="benchmark", role=Role.SERVICE)
        port = free_port()
        with _gateway(found.services, found.folder, port):
            _load(port, key, 5)  # warm
            before = _judged(found.services)
            load = _load(port, key, seconds)
        # The gateway has ended, so that nothing more is accepted.
        wait_until(lambda: _submitted(found.services) == _judged(found.services), timeout_s=30)
        submitted, judged = _submitted(found.services), _judged(found.services)
        yield from _figures(load, submitted - judged, judged - before)


def _figures(load: dict[str, Any], without_verdict: int, judged: int) -> Iterator[Figure]:
    rate = load["requests"] / load["seconds"]
    note = f"{load['requests']:,} requests in {load['seconds']:.0f} s, {judged:,} judged"
    yield Figure("gateway", "requests answered", rate, "requests/s", at_least=0.98 * _PER_S, note=note)
    yield Figure("gateway", "p50", load["p50_ms"], "ms")
    yield Figure("gateway", "p99", load["p99_ms"], "ms", at_most=200, note=f"max {load['max_ms']:.0f} ms")
    errors = load["refused"] + load["failed"] + load["late"]
    yield Figure("gateway", "errors, and answers without a verdict", errors, "requests", at_most=0)
    yield Figure("gateway", "accepted items without a verdict", without_verdict, "items", at_most=0)


@contextmanager
def _gateway(services: Services, folder: Path, port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "libra_fleet.cli", "gateway", "--port", str(port), "--guard", GUARD, "--no-local"]
    with (folder / "gateway.log").open("wb") as output:
        process = subprocess.Popen(command, env=services.environment(), stdout=output, stderr=output)
    try:
        if not wait_until(lambda: answers(port), timeout_s=30):
            raise TimeoutError("the gateway did not start")
        yield
    finally:
        stop(process, grace_s=10)


def _load(port: int, key: str, seconds: int) -> dict[str, Any]:
    environment = {
        **os.environ,
        "API_KEY": key,
        "MEAN_PAUSE_MS": str(_MEAN_PAUSE_MS),
        "FILLER": text_of(0, _TEXT_BYTES),
    }
    command = ["wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{seconds}s", "-s", str(_SCRIPT)]
    url = f"http://127.0.0.1:{port}/v1/moderations"
    done = subprocess.run([*command, url], env=environment, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("JSON "))
    loaded: dict[str, Any] = json.loads(line.removeprefix("JSON "))
    return loaded


def _submitted(services: Services) -> int:
    return _count(services, "submissions")


def _judged(services: Services) -> int:
    return _count(services, "submissions JOIN verdicts USING (run_id, seq)")


def _count(services: Services, rows: str) -> int:
    with services.engine.connect() as connection:
        return int(connection.scalar(sa.text(f"SELECT count(*) FROM {rows}")) or 0)  # noqa: S608
