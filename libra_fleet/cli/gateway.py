"""`libra gateway`: the HTTP gateway until SIGTERM."""

from __future__ import annotations

import signal
from typing import Final

import click
import uvicorn

from infra.coordination.presence import announced
from infra.ledger.policies import PolicyNames
from infra.servers.services import services
from infra.settings import load_settings
from libra_fleet.cli.context import fleet_for
from libra_fleet.cli.options import GuardChoice, LocalFleetOptions, guard_option, mode_for, takes_fleet
from libra_fleet.cli.show import say
from producer.gateway.app import build_app
from schemas.messages import Lane
from schemas.runs import RunSpec

_KEEP_ALIVE_S: Final = 75
"""Longer than the 60 s after which load balancers close an idle connection, so that none is closed under a request."""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65_535), default=8000, show_default=True)
@guard_option
@takes_fleet
def gateway(*, host: str, port: int, guard: GuardChoice, fleet: LocalFleetOptions) -> None:
    """Serve the HTTP API until SIGTERM; --guard is the one that judges where a request names none."""
    settings = load_settings()
    spec = RunSpec(
        guard=guard.name,
        checkpoint=guard.checkpoint,
        mode=mode_for(guard, None),
        lane=Lane.LIVE,
        source="gateway",
    )
    with services(settings) as found, fleet_for(found, spec, fleet), announced(found.coordination.presence, "gateway"):
        config = uvicorn.Config(
            build_app(found, default_guard=guard.name, knows_policy=PolicyNames(found.engine)),
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.drain_s),
        )
        say(f"gateway on http://{host}:{port}")
        # uvicorn stops in order on SIGTERM, then raises the signal again: by then it is obeyed already.
        signal.signal(signal.SIGTERM, lambda *_: None)
        uvicorn.Server(config).run()
