"""`libra keys`: API keys for the gateway."""

from __future__ import annotations

import click
from pydantic import TypeAdapter, ValidationError

from infra.errors import KeyNotFoundError, UsageError
from infra.ledger import keys as ledger_keys
from infra.ledger.keys import ApiKey
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import json_option
from libra_fleet.cli.show import print_json, print_listing, say
from schemas.access import Role, Tenant

_TENANT = TypeAdapter[str](Tenant)


def _tenant(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else _TENANT.validate_python(value)
    except ValidationError as error:
        raise click.BadParameter("lower-case letters, digits and _; 63 at most, a letter or digit first") from error


@click.command()
@click.option("--tenant", required=True, callback=_tenant, help="Whose items the key submits and sees.")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default=Role.SERVICE.value,
    show_default=True,
    help="service: submit and read; viewer: read; moderator: decide as well; admin: everything of every tenant.",
)
@click.option("--note", default="", help="What the key is for.")
@json_option
def create(*, tenant: str, role: str, note: str, as_json: bool) -> None:
    """Make an API key and print it, this once.

    Only its hash is kept.
    """
    with connected() as found:
        key, secret = ledger_keys.create_key(found.engine, tenant=tenant, role=Role(role), note=note)
    if as_json:
        print_json({**_facts(key), "key": secret})
    else:
        say(f"key {key.id} of {key.tenant}, role {key.role}; it is not shown again:")
        click.echo(secret)


@click.command(name="list")
@click.option("--tenant", callback=_tenant, help="Only this tenant's.")
@json_option
def list_(*, tenant: str | None, as_json: bool) -> None:
    """List API keys, revoked ones as well."""
    with connected() as found:
        known = ledger_keys.list_keys(found.engine, tenant=tenant)
    if as_json:
        print_json([_facts(key) for key in known])
        return
    if not known:
        say("no keys yet: `libra keys create --tenant NAME` makes one")
        return
    listed = []
    for key in known:
        revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else ""
        listed.append((key.id, key.tenant, key.role.value, f"{key.created_at:%Y-%m-%d %H:%M}", revoked, key.note))
    print_listing(("id", "tenant", "role", "created (UTC)", "revoked (UTC)", "note"), listed)


@click.command()
@click.argument("key_id", metavar="ID")
@json_option
def revoke(*, key_id: str, as_json: bool) -> None:
    """End an API key.

    Gateways that know it forget it within seconds.
    """
    with connected() as found:
        key = ledger_keys.revoke_key(found.engine, key_id)
    say(f"key {key.id} of {key.tenant} is revoked")
    if as_json:
        print_json(_facts(key))


@click.command()
@click.argument("key_id", metavar="ID")
@json_option
def secret(*, key_id: str, as_json: bool) -> None:
    """Print the signing secret of an API key, for the clouds' wires.

    Clients of Aliyun and Tencent sign their requests with the key's id and this secret. It is derived from
    LIBRA_CONNECTOR_SECRET, which must be the gateways' own.
    """
    with connected() as found:
        master = found.settings.connector_secret
        if master is None:
            raise UsageError("LIBRA_CONNECTOR_SECRET is not set; make one: openssl rand -hex 32")
        key = ledger_keys.valid_key(found.engine, key_id)
    if key is None:
        raise KeyNotFoundError(f"no key {key_id!r}, or it is revoked")
    signing = ledger_keys.signing_secret(master.get_secret_value(), key.id)
    if as_json:
        print_json({**_facts(key), "signing_secret": signing})
    else:
        say(f"signing secret of key {key.id} of {key.tenant}:")
        click.echo(signing)


def _facts(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "role": key.role.value,
        "note": key.note,
        "created_at": key.created_at.isoformat(),
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }
