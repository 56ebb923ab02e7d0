"""`libra verify RUN`: the receipt of a run, and the proof that its books balance."""

from __future__ import annotations

import json
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from infra.errors import RunError
from infra.ledger import reading
from infra.ledger.audit import Audit, audit
from libra_fleet.cli.context import connected

_out: Final = Console(highlight=False)


@click.command()
@click.argument("run")
@click.option("--receipt", help="The receipt you kept: it must be the one found now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def verify(*, run: str, receipt: str | None, as_json: bool) -> None:
    """Prove that nothing in a run was lost, doubled or altered; exit 7 on any breach."""
    with connected() as found:
        status = reading.run_status(found.engine, run)
        result = audit(found.engine, status.id)
    if as_json:
        click.echo(json.dumps(_facts(result), ensure_ascii=False, indent=2))
    else:
        _show(result, status)
    breaches = [check.name for check in result.checks if check.breaches]
    if breaches:
        raise RunError(f"run {status.name} breaks {len(breaches)} of {len(result.checks)}: {'; '.join(breaches)}")
    if receipt and receipt != result.receipt:
        raise RunError(f"the receipt of run {status.name} is {result.receipt}, not the one you kept")


def _facts(result: Audit) -> dict[str, object]:
    return {
        "run": result.run_id,
        "sound": result.sound,
        "receipt": result.receipt,
        "wasted_items": result.wasted_items,
        "reattempted_chunks": result.reattempted_chunks,
        **({"cached_items": result.cached_items} if result.cached_items else {}),
        "checks": [check._asdict() for check in result.checks],
    }


def _show(result: Audit, status: reading.RunStatus) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in result.checks:
        mark = "[green]✓[/]" if not check.breaches else f"[red]✗ {check.breaches:,}[/]"
        table.add_row(mark, check.name, f"[dim]{check.found}[/]")
    counts = status.counts
    _out.print(f"run {status.name} · {status.state.value}")
    _out.print(table)
    _out.print(f"{counts.accepted:,} accepted · {counts.settled:,} settled · {counts.pending:,} pending")
    _out.print(f"{result.wasted_items:,} items judged in vain · {result.reattempted_chunks:,} chunks tried again")
    if result.cached_items:
        _out.print(f"{result.cached_items:,} items answered from the cache")
    _out.print(f"receipt {result.receipt}")
