"""A gateway process for tests, and a key for it."""

from __future__ import annotations

import socket
import subprocess
import urllib.request

from infra.ledger.keys import create_key
from infra.servers.services import Services
from schemas.access import Role
from tests.support.fleet import Fleet


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_gateway(fleet: Fleet, port: int, **environment: str) -> subprocess.Popen[bytes]:
    """A gateway of the fake guard that answers on this port."""
    options = ("--port", str(port), "--guard", "fake", "--no-local")
    process = fleet.start("gateway", *options, **environment)
    fleet.wait(lambda: answers(port))
    return process


def answers(port: int) -> bool:
    """Whether a gateway on this port is alive."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def new_key(services: Services, *, tenant: str = "acme", role: Role = Role.SERVICE) -> str:
    """A key."""
    return create_key(services.engine, tenant=tenant, role=role)[1]
