"""`libra webhooks`: send what waits, see what was sent, send it again; where to, and signed with what."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import click
from rich.table import Table
from rich.text import Text

from infra.coordination.presence import announced
from infra.errors import UsageError
from infra.ledger import endpoints as addresses
from infra.ledger import outbox
from infra.ledger.endpoints import Endpoint
from infra.servers.services import services
from infra.settings import load_settings
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import json_option
from libra_fleet.cli.show import out, print_json, say
from libra_fleet.cli.timestamps import moment
from producer.webhooks.addresses import Allowed, RefusedAddressError, check_form
from schemas.webhooks import Event

_STATES: Final = ("pending", "delivered", "failed")


@click.group()
def webhooks() -> None:
    """Tell platforms what was judged, by the Standard Webhooks convention (docs/webhooks.md)."""


@webhooks.command()
def send() -> None:
    """Send what waits in the outbox until SIGTERM; any number of senders may run."""
    from producer.webhooks.sender import Sender  # noqa: PLC0415 - only this command signs

    settings = load_settings()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with services(settings) as found, announced(found.coordination.presence, "webhooks"):
        Sender(found.engine, settings, found.coordination).run(stop)


@webhooks.command(name="list")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--state", type=click.Choice(_STATES), help="Only in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@json_option
def list_(*, tenant: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List the newest letters, whom they go to and what became of them."""
    with connected() as found:
        rows = outbox.sent(found.engine, tenant=tenant, state=state, limit=limit)
    if as_json:
        print_json([_sent_facts(row) for row in rows])
        return
    table = Table("id", "event", "to", "state", "attempts", "last answer", "next (UTC)", box=None, pad_edge=False)
    for row in rows:
        due = f"{row.next_at:%m-%d %H:%M:%S}" if row.state == "pending" else ""
        answer = Text(row.last_error or str(row.last_status or ""))
        table.add_row(row.id, row.event, Text(row.destination), row.state, str(row.attempts), answer, due)
    out.print(table if rows else "no letters")


def _sent_facts(row: outbox.Sent) -> dict[str, object]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row._asdict().items()}


@webhooks.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--endpoint", help="Only those to this endpoint.")
@click.option("--state", type=click.Choice(("failed", "delivered")), help="Only in this state.")
@click.option("--since", metavar="WHEN", callback=moment, help="Only what happened since then: 7d, 12h, a date.")
def replay(
    *, ids: Sequence[str], tenant: str | None, endpoint: str | None, state: str | None, since: datetime | None
) -> None:
    """Send letters again, under the same ids: those named, or all that every option fits."""
    if not (ids or tenant or endpoint or state or since):
        raise UsageError("say which: ids, --tenant, --endpoint, --state or --since")
    with connected() as found:
        count = outbox.replay(
            found.engine, ids=list(ids) or None, tenant=tenant, endpoint_id=endpoint, state=state, since=since
        )
    say(f"{count:,} letters are due again")


@webhooks.command()
@click.argument("tenant")
@click.option("--rotate", is_flag=True, help="Make a new one; the last one goes on signing beside it.")
def secret(*, tenant: str, rotate: bool) -> None:
    """Print the secret that signs letters to the callback addresses of a tenant's items; make one if there is none."""
    with connected() as found:
        known = addresses.tenant_secrets(found.engine, tenant)
        click.echo(addresses.rotate_tenant_secret(found.engine, tenant) if rotate or not known else known[0])


@webhooks.group()
def endpoints() -> None:
    """Where a tenant is told of everything."""


@endpoints.command()
@click.argument("tenant")
@click.argument("url")
@click.option("--event", "events", type=click.Choice([e.value for e in Event]), multiple=True, help="Default: all.")
@json_option
def add(*, tenant: str, url: str, events: tuple[str, ...], as_json: bool) -> None:
    """Tell a tenant's events to URL from now on; prints the endpoint's id and its signing secret."""
    try:
        check_form(url, Allowed.parse(load_settings().webhook_allow))
    except RefusedAddressError as error:
        hint = "LIBRA_WEBHOOK_ALLOW names the hosts and networks inside that are told, by http as well"
        raise UsageError(f"{error}; {hint}") from error
    wanted = [Event(name) for name in events] or list(Event)
    with connected() as found:
        made = addresses.add_endpoint(found.engine, tenant, url, wanted)
    if as_json:
        print_json({**_endpoint_facts(made), "secret": made.secrets[0]})
    else:
        click.echo(f"{made.id} {made.secrets[0]}")


@endpoints.command(name="list")
@click.option("--tenant", help="Only this tenant's.")
@json_option
def list_endpoints(*, tenant: str | None, as_json: bool) -> None:
    """List endpoints; secrets are not shown."""
    with connected() as found:
        rows = addresses.endpoints(found.engine, tenant)
    if as_json:
        print_json([_endpoint_facts(row) for row in rows])
        return
    table = Table("id", "tenant", "url", "events", "state", box=None, pad_edge=False)
    for row in rows:
        state = f"disabled: {row.reason}" if row.disabled_at else "enabled"
        table.add_row(row.id, row.tenant, Text(row.url), ", ".join(row.events), Text(state))
    out.print(table if rows else "no endpoints")


def _endpoint_facts(row: Endpoint) -> dict[str, object]:
    return {
        "id": row.id,
        "tenant": row.tenant,
        "url": row.url,
        "events": list(row.events),
        "created_at": row.created_at.isoformat(),
        "disabled_at": row.disabled_at and row.disabled_at.isoformat(),
        "reason": row.reason,
    }


@endpoints.command()
@click.argument("endpoint")
def remove(*, endpoint: str) -> None:
    """Forget an endpoint; what still waits for it fails."""
    with connected() as found:
        addresses.remove_endpoint(found.engine, endpoint)


@endpoints.command()
@click.argument("endpoint")
def enable(*, endpoint: str) -> None:
    """Tell a disabled endpoint again; `libra webhooks replay --endpoint ID --state failed` sends what it missed."""
    with connected() as found:
        addresses.enable_endpoint(found.engine, endpoint)


@endpoints.command()
@click.argument("endpoint")
def rotate(*, endpoint: str) -> None:
    """Print a new secret; the last one goes on signing beside it until the next rotation."""
    with connected() as found:
        click.echo(addresses.rotate_endpoint_secret(found.engine, endpoint))
