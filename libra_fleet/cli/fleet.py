"""`libra fleet`: the processes that judge, settle and serve, each until SIGTERM; and what readies the servers."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from infra.coordination.presence import announced, is_ready
from infra.coordination.store import open_coordination
from infra.errors import ServerError, UsageError
from infra.guard_catalogue import GUARDS
from infra.ledger.decisions import PolicyNames
from infra.ledger.engine import HEAD, open_ledger, upgrade
from infra.servers.services import Work, services
from infra.settings import load_settings
from libra_fleet.cli.context import connected, fleet_for
from libra_fleet.cli.options import (
    GuardChoice,
    LocalFleetOptions,
    dtype_option,
    guard_option,
    json_option,
    mode_for,
    require_one_checkpoint,
    takes_fleet,
)
from libra_fleet.cli.show import print_json, say
from schemas.fleet import ProcessKind
from schemas.guards import Mode
from schemas.messages import Lane

if TYPE_CHECKING:
    from worker.device.spec import EngineName

_SPEC_OPTIONS: Final = (
    *("family", "dtype", "devices_per_worker", "trust_remote_code"),
    *("deterministic", "max_batch_items", "fake_error", "fake_overlaps"),
)
"""Options of a worker that its devices are given as they are."""

_KEEP_ALIVE_S: Final = 75
"""Longer than the 60 s after which load balancers close an idle connection, so that none is closed under a request."""


@click.command()
@click.option("--guard", required=True, help="Guard by name, or NAME=CHECKPOINT (folder, hub id, or BASE+ADAPTER).")
@click.option("--checkpoint", help="Folder, hub id or BASE+ADAPTER to load instead of the guard's own.")
@click.option("--family", help="Ask in the words of this family or guard. Default: what the checkpoint shows.")
@click.option("--devices", default="all", show_default=True, help="all, cpu, or GPUs by index or UUID: 0,1.")
@click.option(
    "--devices-per-worker", type=click.IntRange(min=1), default=1, help="Devices that one model is spread over."
)
@dtype_option
@click.option("--offload-folder", type=click.Path(file_okay=False), help="Where accelerate may offload weights.")
@click.option("--max-batch-tokens", type=click.IntRange(min=16), help="Token budget of a batch. Default: by device.")
@click.option("--max-batch-items", type=click.IntRange(min=1), help="Prompts in a batch, at most. Default: by device.")
@click.option(
    "--deterministic", is_flag=True, help="Run batches of fixed shapes: no score depends on its neighbours. Slower."
)
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings along.")
@click.option(
    "--engine",
    type=click.Choice(["transformers", "openai"]),
    default="transformers",
    show_default=True,
    help="openai: the model runs on a server (vLLM, SGLang, ...); only the guard's tokenizer is needed here.",
)
@click.option("--base-url", help="openai: the server's address, such as http://gpu1:8000/v1.")
@click.option("--model", help="openai: the server's name for the model. Default: the only one it serves.")
@click.option("--api-key-file", type=click.Path(dir_okay=False, path_type=Path), help="openai: file with the key.")
@click.option("--concurrency", type=click.IntRange(1, 1024), help="openai: requests at the same time. Default: 16.")
@click.option(
    "--request-timeout",
    "request_timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    help="openai: seconds to wait for an answer before the request is repeated. Default: 60.",
)
@click.option("--fake-batch-ms", type=float, default=0, hidden=True, help="fake guard: simulated cost of a batch.")
@click.option("--fake-item-ms", type=float, default=0, hidden=True, help="fake guard: simulated cost of an item.")
@click.option(
    "--fake-token-us", type=float, default=0, hidden=True, help="Any guard: no model runs; simulated cost of a token."
)
@click.option(
    "--fake-overlaps", is_flag=True, hidden=True, help="Simulated batches are launched while others are computed."
)
@click.option(
    "--fake-error",
    type=click.FloatRange(0, 0.5),
    default=0,
    hidden=True,
    help="fake guard: simulated share of wrong verdicts, the less sure the more of them.",
)
def worker(*, guard: str, checkpoint: str | None, devices: str, **options: Any) -> None:
    """Judge items with one guard on this machine's devices until SIGTERM."""
    from pydantic import ValidationError  # noqa: PLC0415 - keeps `libra --help` quick

    from worker.device.inventory import choose_devices  # noqa: PLC0415
    from worker.device.spec import DeviceSpec, ServerSpec, longest_batch_s  # noqa: PLC0415
    from worker.guards.registry import is_fake  # noqa: PLC0415
    from worker.supervisor import run_worker  # noqa: PLC0415

    require_one_checkpoint(guard, checkpoint)
    name, _, location = guard.partition("=")
    location = location or checkpoint or ""
    card = GUARDS.get(name)
    if card is None and not location:
        raise UsageError(f"no guard named {name!r} (`libra guards` lists them; NAME=FOLDER runs your own)")
    settings = load_settings()
    folder = options["offload_folder"]
    fields = ("base_url", "model", "api_key_file", "concurrency", "request_timeout_s")
    given = {field: options[field] for field in fields if options[field] is not None}
    server: ServerSpec | None = None
    if options["engine"] == "openai":
        if "base_url" not in given:
            raise UsageError("--engine openai needs --base-url, such as http://gpu1:8000/v1")
        try:
            server = ServerSpec(**given)
        except ValidationError as error:
            raise UsageError(
                f"--base-url {given['base_url']!r}: expected an address such as http://gpu1:8000/v1"
            ) from error
    elif given:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} goes with --engine openai")
    local: EngineName = "fake" if is_fake(name, location or None) or options["fake_token_us"] else "transformers"
    spec = DeviceSpec(
        guard=name,
        location=location or None,
        revision=card.revision if card and not location else None,
        engine="openai" if server else local,
        server=server,
        modes=tuple(Mode),
        **{name: options[name] for name in _SPEC_OPTIONS},
        offload_folder=Path(folder) if folder else None,
        max_batch_tokens=options["max_batch_tokens"] or settings.max_batch_tokens,
        batch_deadline_s=settings.batch_deadline_s if server is None else longest_batch_s(server.request_timeout_s),
        fake_batch_s=options["fake_batch_ms"] / 1000,
        fake_item_s=options["fake_item_ms"] / 1000,
        fake_token_s=options["fake_token_us"] / 1e6,
        socket_path=Path("unset"),  # the supervisor gives every device its own paths
        heartbeat_path=Path("unset"),
    )
    if server is not None:
        devices = "cpu"
    chosen = choose_devices(devices, per_worker=spec.devices_per_worker, visible=settings.cuda_visible_devices)
    with services(settings) as found:
        run_worker(settings, found.coordination, environment=found.environment(), devices=chosen, spec=spec)


@click.command()
def collector() -> None:
    """Settle verdicts into the ledger and complete runs until SIGTERM."""
    from worker.collector.process import run_collector  # noqa: PLC0415 - keeps `libra --help` quick

    settings = load_settings()
    with services(settings) as found:
        run_collector(found)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65_535), default=8000, show_default=True, help="Port to listen on.")
@guard_option
@takes_fleet
def gateway(*, host: str, port: int, guard: GuardChoice, fleet: LocalFleetOptions) -> None:
    """Serve the HTTP API and the console until SIGTERM.

    --guard is the one that judges where a request names none.
    """
    import uvicorn  # noqa: PLC0415 - an extra

    from producer.gateway.app import build_app  # noqa: PLC0415

    settings = load_settings()
    spec = guard.spec(mode_for(guard, None), "gateway", lane=Lane.LIVE)
    require_free(host, port)
    with services(settings) as found, fleet_for(found, spec, fleet), announced(found.coordination.presence, "gateway"):
        serving = found.working(Work.INTAKE)
        config = uvicorn.Config(
            build_app(serving, default_guard=guard.name, knows_policy=PolicyNames(serving.engine)),
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.drain_s),
        )
        say(f"gateway on http://{host}:{port}")
        # uvicorn stops in order on SIGTERM, then raises the signal again, which has been obeyed by then.
        signal.signal(signal.SIGTERM, lambda *_: None)
        uvicorn.Server(config).run()


def require_free(host: str, port: int) -> None:
    """See that an address can be listened on, before anything is started or printed.

    Raises:
        UsageError: it is taken, or is none of this machine's.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}; --port names another") from error


@click.command()
def webhooks() -> None:
    """Send webhook messages from the outbox until SIGTERM.

    Any number of senders may run.
    """
    from producer.webhooks.sender import Sender  # noqa: PLC0415 - only this command signs

    settings = load_settings()
    stop = _stopped_by_signal()
    with services(settings) as found, announced(found.coordination.presence, "webhooks"):
        # Not `coordination`: each call of that one waits while Redis is away, and the poll must go on.
        Sender(found.engine, settings, found.coordination_at_once).run(stop)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65_535), default=9464, show_default=True, help="Port to listen on.")
def exporter(*, host: str, port: int) -> None:
    """Serve the fleet's metrics to Prometheus until SIGTERM.

    A gateway does so too, at /metrics.
    """
    from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415 - an extra

    from producer.exporter import FleetCollector  # noqa: PLC0415

    with connected() as found:
        registry = CollectorRegistry()
        registry.register(FleetCollector(found))
        stop = _stopped_by_signal()
        try:
            server, _ = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        say(f"metrics on http://{host}:{port}/metrics")
        stop.wait()
        server.shutdown()
        server.server_close()


def _stopped_by_signal() -> threading.Event:
    """An event that SIGTERM or Ctrl-C sets."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


@click.command()
@json_option
def migrate(*, as_json: bool) -> None:
    """Bring the configured Postgres to the ledger's present schema."""
    settings = load_settings()
    upgrade(open_ledger(settings.require_database_url(), wait_s=settings.wait_for_servers_s))
    if as_json:
        print_json({"revision": HEAD})
    else:
        click.echo(f"ledger at revision {HEAD}")


@click.command()
@click.option("--worker", "role", flag_value="worker", help="Also ask whether this host's worker is ready.")
@click.option("--collector", "role", flag_value="collector", help="Also ask whether this host's collector is ready.")
@click.option("--webhooks", "role", flag_value="webhooks", help="Also ask whether this host's webhook sender is ready.")
@click.option("--gateway", "role", flag_value="gateway", help="Also ask whether this host's gateway is ready.")
def health(*, role: ProcessKind | None) -> None:
    """Exit 0 if the configured Redis answers, else 4."""
    settings = load_settings()
    coordination = open_coordination(
        settings.require_redis_url(), settings.model_copy(update={"wait_for_servers_s": 0})
    )
    host = socket.gethostname()
    if role and not is_ready(coordination.presence.announced(), role, host):
        raise ServerError(f"no {role} of {host} is ready")
    click.echo(f"{role or 'Redis'} is ready")
