"""`libra webhooks`: messages and their delivery, endpoints, and the secrets that sign them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import click

from infra.errors import UsageError
from infra.ledger import webhooks
from infra.ledger.webhooks import Endpoint
from infra.settings import load_settings
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import json_option, limit_option, tenant_option, timestamp
from libra_fleet.cli.show import out, print_json, print_listing, say
from producer.webhooks.addresses import Allowed, RefusedAddressError, check_form
from schemas.webhooks import Event

_STATES: Final = ("pending", "delivered", "failed")


@click.command(name="list")
@tenant_option
@click.option("--state", type=click.Choice(_STATES), help="Only in this state.")
@limit_option
@json_option
def list_(*, tenant: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List the newest messages, their destinations and delivery states."""
    with connected() as found:
        rows = webhooks.sent(found.engine, tenant=tenant, state=state, limit=limit)
    if as_json:
        print_json(
            [{k: v.isoformat() if isinstance(v, datetime) else v for k, v in row._asdict().items()} for row in rows]
        )
        return
    listed = []
    for row in rows:
        due = f"{row.next_at:%m-%d %H:%M:%S}" if row.state == "pending" else ""
        answer = row.last_error or str(row.last_status or "")
        listed.append((row.id, row.event, row.destination, row.state, str(row.attempts), answer, due))
    if rows:
        print_listing(("id", "event", "to", "state", "attempts", "last answer", "next (UTC)"), listed)
    else:
        out.print("no messages")


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@tenant_option
@click.option("--endpoint", help="Only those to this endpoint.")
@click.option("--state", type=click.Choice(("failed", "delivered")), help="Only in this state.")
@click.option("--since", metavar="WHEN", callback=timestamp, help="Only events since then: 7d, 12h, a date.")
@json_option
def resend(
    *,
    ids: Sequence[str],
    tenant: str | None,
    endpoint: str | None,
    state: str | None,
    since: datetime | None,
    as_json: bool,
) -> None:
    """Send messages again under the same ids.

    Those that are named by id, or all that match every option.
    """
    if not (ids or tenant or endpoint or state or since):
        raise UsageError("say which: ids, --tenant, --endpoint, --state or --since")
    with connected() as found:
        count = webhooks.replay(
            found.engine, ids=list(ids) or None, tenant=tenant, endpoint_id=endpoint, state=state, since=since
        )
    say(f"{count:,} messages are due again")
    if as_json:
        print_json({"due": count})


@click.command()
@click.argument("tenant")
@click.option("--rotate", is_flag=True, help="Make a new one; the previous one keeps signing alongside it.")
@json_option
def secret(*, tenant: str, rotate: bool, as_json: bool) -> None:
    """Print the secret that signs messages to a tenant's callback addresses.

    It is made if there is none.
    """
    with connected() as found:
        known = webhooks.tenant_secrets(found.engine, tenant)
        value = webhooks.rotate_tenant_secret(found.engine, tenant) if rotate or not known else known[0]
    if as_json:
        print_json({"tenant": tenant, "secret": value})
    else:
        click.echo(value)


@click.command()
@click.argument("tenant")
@click.argument("url")
@click.option(
    "--event",
    "events",
    type=click.Choice([e.value for e in Event]),
    multiple=True,
    help="Send only this event; repeatable. Default: all.",
)
@click.option(
    "--signature",
    type=click.Choice(("standard", "checksum")),
    default="standard",
    show_default=True,
    help="standard: Standard Webhooks; checksum: a form of content and checksum, as Aliyun's callbacks.",
)
@json_option
def add(*, tenant: str, url: str, events: tuple[str, ...], signature: str, as_json: bool) -> None:
    """Send a tenant's events to a URL from now on.

    Prints the endpoint's id and its signing secret.
    """
    try:
        check_form(url, Allowed.parse(load_settings().webhook_allow))
    except RefusedAddressError as error:
        hint = "LIBRA_WEBHOOK_ALLOW names the internal hosts and networks that may receive messages, over http as well"
        raise UsageError(f"{error}; {hint}") from error
    wanted = [Event(name) for name in events] or list(Event)
    with connected() as found:
        form = webhooks.SEED if signature == "checksum" else webhooks.STANDARD
        made = webhooks.add_endpoint(found.engine, tenant, url, wanted, form=form)
    if as_json:
        print_json({**_endpoint_facts(made), "secret": made.secrets[0]})
    else:
        click.echo(f"{made.id} {made.secrets[0]}")


@click.command(name="list")
@tenant_option
@json_option
def list_endpoints(*, tenant: str | None, as_json: bool) -> None:
    """List endpoints without their secrets."""
    with connected() as found:
        rows = webhooks.endpoints(found.engine, tenant)
    if as_json:
        print_json([_endpoint_facts(row) for row in rows])
        return
    if not rows:
        out.print("no endpoints")
        return
    states = (f"disabled: {row.reason}" if row.disabled_at else "enabled" for row in rows)
    listed = [
        (row.id, row.tenant, row.url, ", ".join(row.events), state) for row, state in zip(rows, states, strict=True)
    ]
    print_listing(("id", "tenant", "url", "events", "state"), listed)


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


@click.command()
@click.argument("endpoint")
def remove(*, endpoint: str) -> None:
    """Remove an endpoint; messages that still wait for it fail."""
    with connected() as found:
        webhooks.remove_endpoint(found.engine, endpoint)


@click.command()
@click.argument("endpoint")
def enable(*, endpoint: str) -> None:
    """Send to a disabled endpoint again.

    `libra webhooks resend --endpoint ID --state failed` sends what it missed.
    """
    with connected() as found:
        webhooks.enable_endpoint(found.engine, endpoint)


@click.command()
@click.argument("endpoint")
@json_option
def rotate(*, endpoint: str, as_json: bool) -> None:
    """Give an endpoint a new signing secret and print it.

    The previous one keeps signing alongside it until the next rotation.
    """
    with connected() as found:
        value = webhooks.rotate_endpoint_secret(found.engine, endpoint)
    if as_json:
        print_json({"id": endpoint, "secret": value})
    else:
        click.echo(value)
