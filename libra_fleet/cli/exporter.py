"""`libra metrics-exporter`: the fleet's metrics over HTTP, for a fleet without a gateway."""

from __future__ import annotations

import signal
import threading

import click
from prometheus_client import CollectorRegistry, start_http_server

from infra.errors import UsageError
from libra_fleet.cli.context import connected
from libra_fleet.cli.show import say
from producer.exporter.page import FleetCollector


@click.command("metrics-exporter")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65_535), default=9464, show_default=True)
def metrics_exporter(*, host: str, port: int) -> None:
    """Serve the fleet's metrics to Prometheus until SIGTERM; a gateway does so too, at /metrics."""
    with connected() as found:
        registry = CollectorRegistry()
        registry.register(FleetCollector(found))
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        try:
            server, _ = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        say(f"metrics on http://{host}:{port}/metrics")
        stop.wait()
        server.shutdown()
        server.server_close()
