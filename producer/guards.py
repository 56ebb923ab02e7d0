"""`libra guards`: which guards run by name, what has truly been run here, and how one is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from rich.text import Text

from infra.errors import GuardError
from producer.options import GuardChoice, guard_argument, json_option
from producer.show import out, print_json
from schemas.guards import GUARDS, GuardCard

_SHOW_TIMEOUT_S = 120.0


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def guards(context: click.Context, *, as_json: bool) -> None:
    """List the guards that can be run by name, each with an honest status.

    `libra bench run` also takes several in a row: --guard 'cascade:libra-tiny>libra-guard-qwen2.5-7b-instruct'.
    """
    if context.invoked_subcommand is not None:
        return
    if as_json:
        print_json([_facts(card) for card in GUARDS.values()])
    else:
        _print_table()


@guards.command()
@guard_argument
@json_option
def show(*, guard: GuardChoice, as_json: bool) -> None:
    """Print a guard's card and its prompt.

    The prompt is rendered by the checkpoint where it is at hand (bundled, given, or in the hub's cache), and is the
    family's format with placeholders where it is not.
    """
    card = GUARDS.get(guard.name)
    prompt = _prompt(guard)
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


def _print_table() -> None:
    """Two lines a guard, so that 80 columns hold its name beside its status and the rest below."""
    width = max(map(len, GUARDS))
    for card in GUARDS.values():
        modes = ", ".join(mode.value for mode in card.modes) or "no mode"
        facts = (card.hub_id or "inside the package", modes, f"{card.context_tokens:,} tokens", card.licence)
        out.print(Text(f"{card.name:<{width}}  {card.status.value}"))
        out.print(Text(f"  {' · '.join(facts)}", style="dim"), soft_wrap=True)


def _prompt(guard: GuardChoice) -> str:
    """From the worker's own code, which this package does not import."""
    command = [
        sys.executable,
        "-m",
        "worker.guards.show",
        guard.name,
        *([guard.checkpoint] if guard.checkpoint else []),
    ]
    root = Path(__file__).parents[1]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SHOW_TIMEOUT_S, cwd=root)
    if shown.returncode:
        lines = shown.stderr.strip().splitlines()
        raise GuardError(lines[-1] if lines else f"{guard.name}: its prompt could not be rendered")
    return shown.stdout.rstrip("\n")
