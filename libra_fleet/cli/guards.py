"""`libra guards`: the guards that can be run by name, their status, and their prompts."""

from __future__ import annotations

import click
from rich.text import Text

from infra.guard_catalogue import GUARDS
from libra_fleet.cli.options import GuardChoice, guard_named, json_option
from libra_fleet.cli.show import out, print_json
from schemas.guards import GuardCard
from worker.guards.show import describe


@click.command(name="list")
@json_option
def list_(*, as_json: bool) -> None:
    """List the guards that can be run by name, each with an honest status."""
    if as_json:
        print_json([_facts(card) for card in GUARDS.values()])
        return
    width = max(map(len, GUARDS))
    for card in GUARDS.values():  # two lines each, so that 80 columns hold a name and its status, the rest below
        modes = ", ".join(mode.value for mode in card.modes) or "no mode"
        facts = (card.hub_id or "inside the package", modes, f"{card.context_tokens:,} tokens", card.licence)
        out.print(Text(f"{card.name:<{width}}  {card.status.value}"))
        out.print(Text(f"  {' · '.join(facts)}", style="dim"), soft_wrap=True)


@click.command()
@click.argument("guard", metavar="NAME[=CHECKPOINT]", callback=lambda _, __, value: guard_named(value))
@json_option
def show(*, guard: GuardChoice, as_json: bool) -> None:
    """Print a guard's card and its prompt.

    The prompt is rendered by the checkpoint where it is at hand (bundled, given, or in the hub's cache), and is the
    family's format with placeholders where it is not.
    """
    card = GUARDS.get(guard.name)
    prompt = describe(guard.name, guard.checkpoint)
    if as_json:
        print_json({**(_facts(card) if card else {"name": guard.name}), "prompt": prompt})
        return
    for name, value in (_facts(card) if card else {"name": guard.name}).items():
        if value not in ("", (), [], None):
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            out.print(Text(f"{name.replace('_', ' '):<20}", style="dim").append(shown, style="not dim"))
    out.print()
    click.echo(prompt)


def _facts(card: GuardCard) -> dict[str, object]:
    return {**card.model_dump(mode="json"), "revision_note": card.revision_note}
