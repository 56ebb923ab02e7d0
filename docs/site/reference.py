"""Reference pages made from the code: commands, guards, HTTP routes, Python API."""

from __future__ import annotations

from collections.abc import Iterator

import click
from fastapi import FastAPI

from infra.guard_catalogue import GUARDS
from libra_fleet.cli.main import libra
from producer.gateway.api import batches, items, moderations, ops
from producer.gateway.console import routes as console

_WIDTH = 86  # columns of a code block on a desk's screen
_METHODS = ("get", "post", "put", "patch", "delete")
_PYTHON = {
    "Live traffic on the fleet's own servers": ["producer.intake.live.LiveClient"],
    "Over HTTP": [
        "libra_fleet.client.Client",
        "libra_fleet.client.AsyncClient",
        "libra_fleet.client.ClientError",
        "libra_fleet.client.AuthenticationError",
        "libra_fleet.client.BadRequestError",
        "libra_fleet.client.GatewayTimeoutError",
        "libra_fleet.client.VerdictTimeoutError",
        "schemas.http.ItemRequest",
        "schemas.http.ItemVerdict",
    ],
    "The language everyone speaks": [
        "schemas.items",
        "schemas.verdicts",
        "schemas.runs",
        "schemas.messages",
        "schemas.guards",
        "infra.guard_catalogue",
        "schemas.policy",
        "schemas.taxonomy",
    ],
}


def pages() -> dict[str, str]:
    """Every generated page by its path on the site."""
    return {
        "reference/cli.md": _commands(),
        "reference/guards.md": _guards(),
        "reference/http.md": _http(),
        "reference/python.md": _python(),
    }


def _commands() -> str:
    parts = ["# Command line\n\nWhat `--help` prints, of every command.\n"]
    top = click.Context(libra, info_name="libra", **libra.context_settings)
    for path, command, context in _walk(libra, top, "libra"):
        context.terminal_width = context.max_content_width = _WIDTH
        parts.append(f"{'##' if path.count(' ') < 2 else '###'} {path}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _walk(
    command: click.Command, context: click.Context, path: str
) -> Iterator[tuple[str, click.Command, click.Context]]:
    yield path, command, context
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        if child is None or child.hidden:
            continue
        if (child.short_help or "").startswith("not available here"):
            raise click.ClickException(f"{path} {name} is {child.short_help}")
        inside = click.Context(child, parent=context, info_name=name, **child.context_settings)
        yield from _walk(child, inside, f"{path} {name}")


def _guards() -> str:
    rows = [
        [
            f"`{card.name}`",
            card.status.value,
            ", ".join(mode.value for mode in card.modes) or "–",
            ", ".join(card.languages) or "–",
            f"{card.context_tokens:,}",
            card.licence,
            card.hub_id or "inside the package",
        ]
        for card in GUARDS.values()
    ]
    return (
        "# Guards\n\nBy name, with an honest status: what was truly run here. `libra guards show NAME` prints one with"
        " its prompt.\n\n"
    ) + _table(["Guard", "Status", "Modes", "Languages", "Context, tokens", "Licence", "Checkpoint"], rows)


def _http() -> str:
    app = FastAPI()
    for router in (ops.router, moderations.router, items.router, batches.router, items.runs, console.router):
        app.include_router(router)
    rows = [
        [f"`{method.upper()}`", f"`{path}`", operation.get("description", operation["summary"]).splitlines()[0]]
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
        if method in _METHODS
    ]
    return (
        "# HTTP routes\n\nA running gateway describes them whole at `/openapi.json`; how to use them:"
        " [the gateway](../gateway.md).\n\n"
    ) + _table(["Method", "Route", "What it does"], rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _python() -> str:
    parts = ["# Python\n"]
    for heading, names in _PYTHON.items():
        parts += [f"## {heading}\n", *(f"::: {name}\n" for name in names)]
    return "\n".join(parts)
